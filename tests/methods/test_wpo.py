"""WPO: DPO whose pairs are weighted by how likely the policy itself would write them."""

import math

import pytest
import torch
from attrs import evolve
from cases import Case
from losses import FIRST, SECOND, made
from tiny import arrange, policy, units

from upo.methods.dpo import dpo_loss
from upo.methods.wpo import WPO, wpo_loss, wpo_weights
from upo.models.logps import ResponseLogps

CASES = {WPO: Case(metrics={"weights"}, stops_gradients=True, normaliser_cancels=True, defaults={"beta": 0.01})}


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("fixture", [FIRST, SECOND])
def test_the_golden_value_of_dpo_times_the_weight(fixture):
    pi_w, ref_w, pi_l, ref_l = fixture
    weights = wpo_weights(t(-0.3), t(-0.2))
    assert weights.item() == pytest.approx(math.exp(-0.5))
    loss = wpo_loss(t(pi_w - ref_w), t(pi_l - ref_l), weights, beta=0.1)
    assert loss.item() == pytest.approx(math.exp(-0.5) * 0.403186, abs=5e-7)


def test_weights_are_at_most_1_and_have_no_gradient():
    a, b = t(0.5, -0.5, -3.0).requires_grad_(), t(0.2, 0.2, -1.0).requires_grad_()
    weights = wpo_weights(a, b)
    assert weights.tolist() == pytest.approx([1.0, math.exp(-0.3), math.exp(-4.0)])
    assert not weights.requires_grad


def test_gradcheck_signs_and_finite_far_out():
    weights = t(1.0, 0.5, 0.01)
    w, r = (torch.linspace(-20, 20, 3, dtype=torch.float64).mul(s).requires_grad_() for s in (1, -0.5))
    assert torch.autograd.gradcheck(lambda a, b: wpo_loss(a, b, weights, beta=0.1), (w, r))
    down, up = torch.autograd.grad(wpo_loss(w, r, weights, beta=0.1).sum(), (w, r))
    assert (down < 0).all() and (up > 0).all()
    for far in (1e4, -1e4, -1e-9):
        x = torch.tensor([far, -far], requires_grad=True)
        loss = wpo_loss(x, torch.zeros(2), wpo_weights(torch.tensor([far, -far]), torch.zeros(2)), beta=0.01)
        assert loss.isfinite().all() and torch.autograd.grad(loss.sum(), x)[0].isfinite().all()


def response_logps(model, responses) -> ResponseLogps:
    out = model(responses, WPO.needs.policy)
    r = responses
    logps = out.pop("logps")
    return ResponseLogps(
        logps, r.lengths, r.prompt_index, torch.zeros_like(logps), outputs=out, response_index=r.response_index
    )


def test_weights_of_a_model_against_its_logits():
    """Means over the tokens of each response, one sequence at a time through full logits; one token counts as well."""
    model, work = policy(dtype="float64"), units([(4, [6, 1]), (2, [3, 9])])
    logps = response_logps(model, arrange(work))
    expected = []
    for unit in work:
        omega = 1.0
        for response in unit.responses:
            logits = model.model(input_ids=torch.tensor([unit.prompt + response])).logits[0]
            terms = []
            for i, token in enumerate(response):
                p = logits[len(unit.prompt) - 1 + i].softmax(-1).tolist()
                terms.append(math.log(p[token]) - math.log(sum(x * x for x in p)))
            omega *= math.exp(sum(terms) / len(terms))
        expected.append(min(1.0, omega))
    got = made(WPO).weights(logps[0::2], logps[1::2])
    assert got.tolist() == pytest.approx(expected, rel=1e-6)
    assert min(expected) < 0.5, "the policy would not write random tokens"


def test_a_uniform_policy_gives_dpo():
    model = policy()
    with torch.no_grad():
        model.model.get_output_embeddings().weight.zero_()
    logps = response_logps(model, arrange(units([(4, [6, 1]), (2, [3, 9])])))
    method, (w, r) = made(WPO), (logps[0::2], logps[1::2])
    torch.testing.assert_close(method.weights(w, r), torch.ones(2))
    torch.testing.assert_close(method.loss(w, r), dpo_loss(w.logratio, r.logratio, beta=0.01))


def test_the_gradient_is_that_of_the_weighted_dpo_loss_alone():
    """Nothing flows through the collision term or the log-probs inside the weight."""
    model, responses = policy(dtype="float64"), arrange(units([(4, [6, 1]), (2, [3, 9])]))
    logps, method = response_logps(model, responses), made(WPO)
    fixed = method.weights(logps[0::2], logps[1::2]).clone()
    leaf = logps.logps.detach().requires_grad_()
    free = evolve(logps, logps=leaf)
    expected = torch.autograd.grad((fixed * dpo_loss(leaf[0::2], leaf[1::2], beta=0.01)).sum(), leaf)[0]
    torch.testing.assert_close(torch.autograd.grad(method.loss(free[0::2], free[1::2]).sum(), leaf)[0], expected)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(method.loss(logps[0::2], logps[1::2]).sum(), parameters, retain_graph=True)
    theirs = torch.autograd.grad((logps.logps * expected).sum(), parameters)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y)
