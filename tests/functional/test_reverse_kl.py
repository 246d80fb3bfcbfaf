"""A surrogate whose gradient is that of the reverse KL."""

import itertools

import pytest
import torch
from losses import draws, gradients

from upo.errors import UserError
from upo.functional.reverse_kl import reverse_kl_surrogate


def test_by_hand():
    """Log-ratios 1, 3, 8: baselines 5.5, 4.5, 2; times log policy -2, -1, -3."""
    pi = torch.tensor([[-2.0, -1.0, -3.0]])
    got = reverse_kl_surrogate(pi, pi - torch.tensor([[1.0, 3.0, 8.0]]))
    assert got.tolist() == [[-2 * -4.5, -1 * -1.5, -3 * 6.0]]
    assert reverse_kl_surrogate(pi.T, pi.T - 2).tolist() == [[-4.0], [-2.0], [-6.0]], "no baseline for one response"


@pytest.mark.parametrize("k", [1, 2, 3])
def test_its_expected_gradient_is_that_of_the_reverse_kl(k):
    """All k-tuples of four answers with their probabilities, against autograd through sum p log(p / ref)."""
    logits = draws(4, scale=1.0).requires_grad_()
    reference = draws(4, scale=1.0, seed=1).log_softmax(0)
    logp = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), logits, retain_graph=True)
    total = torch.zeros(())
    for tuple_ in itertools.product(range(4), repeat=k):
        chosen = torch.tensor([tuple_])
        probability = logp[chosen].sum().exp().detach()
        total = total + probability * reverse_kl_surrogate(logp[chosen], reference[chosen]).mean()
    (ours,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(ours, exact)


def test_differentiating_the_log_ratio_itself_would_teach_nothing():
    logits = draws(4, scale=1.0).requires_grad_()
    logp = logits.log_softmax(0)
    (naive,) = torch.autograd.grad((logp.exp().detach() * logp).sum(), logits)
    torch.testing.assert_close(naive, torch.zeros_like(naive))


def test_no_gradient_where_policy_is_reference_and_finite_far_out():
    x = draws(3, 2)
    (gradient,) = gradients(lambda p: reverse_kl_surrogate(p, x), x)
    assert not gradient.any()
    for far in (1e4, -1e4, -1e-9):
        p = torch.full((1, 2), far)
        assert gradients(lambda y: reverse_kl_surrogate(y, torch.zeros(1, 2)), p)[0].isfinite().all()


def test_the_gradient_runs_through_log_policy_alone():
    """At fixed weights the surrogate is linear."""
    p, q = draws(2, 3, 2)
    weights = (p - q) - (p - q).flip(1)
    torch.testing.assert_close(gradients(lambda y: reverse_kl_surrogate(y, q), p)[0], weights)


def test_no_response_is_refused():
    with pytest.raises(UserError, match="at least one"):
        reverse_kl_surrogate(torch.zeros(2, 0), torch.zeros(2, 0))
