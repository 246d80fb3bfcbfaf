"""DPO and conservative DPO."""

import math

import pytest
import torch
from cases import Case
from jaxtyping import TypeCheckError

from upo.methods.dpo import DPO, dpo_loss
from upo.models.logps import ResponseLogps

CASES = {DPO: Case(normaliser_cancels=True, defaults={"beta": 0.1, "label_smoothing": 0.0})}

BETA = 0.1


def slow(r_w: float, r_l: float, beta: float, eps: float) -> float:
    """-(1 - eps) log sigmoid(z) - eps log sigmoid(-z), with math alone."""
    z = beta * (r_w - r_l)

    def minus_log_sigmoid(x: float) -> float:
        return math.log1p(math.exp(-x)) if x > 0 else -x + math.log1p(math.exp(x))

    return (1 - eps) * minus_log_sigmoid(z) + eps * minus_log_sigmoid(-z)


def ratios(n: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(20 * torch.randn(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


@pytest.mark.parametrize(("eps", "golden"), [(0.0, 0.403186), (0.2, 0.543186)])
@pytest.mark.parametrize("logps", [(-40.0, -42.0, -55.0, -50.0), (-45.0, -42.0, -60.0, -50.0)])
def test_golden_values(logps, eps, golden):
    """Both fixtures differ by a constant in both log-ratios, which cancels."""
    pi_w, ref_w, pi_l, ref_l = torch.tensor(logps, dtype=torch.float64)[:, None]
    loss = dpo_loss(pi_w - ref_w, pi_l - ref_l, beta=BETA, label_smoothing=eps)
    assert loss.item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """z = 0.5 (4 - 2) = 1: log(1 + 1/e); smoothed by 0.1 it costs 0.1 z more."""
    w, r = torch.tensor([4.0]), torch.tensor([2.0])
    assert dpo_loss(w, r, beta=0.5).item() == pytest.approx(0.3132617)
    assert dpo_loss(w, r, beta=0.5, label_smoothing=0.1).item() == pytest.approx(0.4132617)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_against_a_slow_reference(beta, eps):
    w, r = ratios()
    expected = [slow(a, b, beta, eps) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    assert dpo_loss(w, r, beta=beta, label_smoothing=eps).tolist() == pytest.approx(expected, rel=1e-12)


def test_no_smoothing_is_dpo_and_swapping_the_pair_mirrors_the_smoothing():
    w, r = ratios()
    plain = -torch.nn.functional.logsigmoid(BETA * (w - r))
    torch.testing.assert_close(dpo_loss(w, r, beta=BETA), plain, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        dpo_loss(w, r, beta=BETA, label_smoothing=0.3), dpo_loss(r, w, beta=BETA, label_smoothing=0.7)
    )
    torch.testing.assert_close(dpo_loss(w + 7, r + 7, beta=BETA), plain)


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_log_2_and_exact_gradients_where_policy_is_reference(eps):
    w, r = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    loss = dpo_loss(w, r, beta=BETA, label_smoothing=eps)
    assert loss.tolist() == pytest.approx([math.log(2)] * 3)
    for x, sign in ((w, -1), (r, 1)):
        (gradient,) = torch.autograd.grad(loss.sum(), x, retain_graph=True)
        assert gradient.tolist() == pytest.approx([sign * BETA * (1 - 2 * eps) / 2] * 3)


def test_smoothing_puts_the_minimum_at_its_log_odds():
    eps = 0.2
    z = torch.tensor([math.log((1 - eps) / eps)], dtype=torch.float64, requires_grad=True)
    loss = dpo_loss(z, torch.zeros_like(z), beta=1.0, label_smoothing=eps)
    assert torch.autograd.grad(loss.sum(), z)[0].item() == pytest.approx(0, abs=1e-12)
    assert loss.item() == pytest.approx(-eps * math.log(eps) - (1 - eps) * math.log(1 - eps))


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_gradcheck_and_signs(eps):
    w, r = (x[:9].clone().requires_grad_() for x in ratios())
    assert torch.autograd.gradcheck(lambda a, b: dpo_loss(a, b, beta=BETA, label_smoothing=eps), (w, r))
    if eps == 0:
        down, up = torch.autograd.grad(dpo_loss(w, r, beta=BETA).sum(), (w, r))
        assert (down < 0).all() and (up > 0).all()
        torch.testing.assert_close(down, -BETA * torch.sigmoid(-BETA * (w - r)).detach())


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("far", [1e4, -1e4, -1e-9])
def test_finite_far_out(far, eps):
    w, r = torch.tensor([far, 0.0], requires_grad=True), torch.tensor([0.0, far], requires_grad=True)
    loss = dpo_loss(w, r, beta=BETA, label_smoothing=eps)
    assert loss.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.sum(), (w, r)))
    assert loss.tolist() == pytest.approx([slow(far, 0, BETA, eps), slow(0, far, BETA, eps)], rel=1e-5, abs=1e-7)


def test_shapes_are_checked_under_pytest():
    """One value would be broadcast over three without a word."""
    with pytest.raises(TypeCheckError):
        dpo_loss(torch.zeros(3), torch.zeros(1), beta=BETA)


def test_a_response_of_one_token_with_log_prob_near_0():
    logps = torch.tensor([-1e-9, -1e4], requires_grad=True)
    one = ResponseLogps(logps, torch.ones(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), torch.zeros(2))
    loss = dpo_loss(one[0::2].logratio, one[1::2].logratio, beta=BETA)
    assert loss.isfinite().all() and torch.autograd.grad(loss.sum(), logps)[0].isfinite().all()
