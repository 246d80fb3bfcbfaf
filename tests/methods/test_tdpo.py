"""TDPO1 and TDPO2: DPO with the divergence of whole next-token distributions."""

import math

import pytest
import torch
from cases import Case
from losses import FIRST, SECOND
from tiny import arrange, batch_of, plain_logps, policy, units

from upo.data.views import PairedView
from upo.methods.dpo import dpo_loss
from upo.methods.tdpo import TDPO1, TDPO2, tdpo1_loss, tdpo2_loss
from upo.models.reference import FrozenReference

CASES = {
    TDPO1: Case(metrics={"kl/chosen", "kl/rejected"}, defaults={"beta": 0.1}),
    TDPO2: Case(metrics={"kl/chosen", "kl/rejected"}, defaults={"beta": 0.1, "alpha": 0.5}),
}

WORK = units([(4, [6, 1]), (2, [3, 9]), (1, [1, 1])])


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slow(r_w: float, r_l: float, k_w: float, k_l: float, beta: float, alpha: float) -> float:
    z = beta * (r_w - r_l - alpha * (k_l - k_w))
    return math.log1p(math.exp(-z)) if z > 0 else -z + math.log1p(math.exp(z))


@pytest.mark.parametrize("fixture", [FIRST, SECOND])
def test_golden_values_without_divergence(fixture):
    pi_w, ref_w, pi_l, ref_l = fixture
    w, r, none = t(pi_w - ref_w), t(pi_l - ref_l), t(0.0)
    assert tdpo1_loss(w, r, none, none, beta=0.1).item() == pytest.approx(0.403186, abs=5e-7)
    assert tdpo2_loss(w, r, none, none, beta=0.1, alpha=0.5).item() == pytest.approx(0.403186, abs=5e-7)


def test_by_hand():
    """u = 7; delta = 5 - 2 = 3: z = 0.1 (7 - 3) = 0.4, and 0.1 (7 - 1.5) = 0.55."""
    arguments = t(2.0), t(-5.0), t(2.0), t(5.0)
    assert tdpo1_loss(*arguments, beta=0.1).item() == pytest.approx(0.5130153)
    assert tdpo2_loss(*arguments, beta=0.1, alpha=0.5).item() == pytest.approx(0.4554925)


def random(n: int = 20) -> tuple[torch.Tensor, ...]:
    x = 5 * torch.randn(4, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x[0], x[1], x[2].abs(), x[3].abs()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_against_a_slow_reference(alpha):
    x = random()
    expected = [slow(*row, 0.1, alpha) for row in zip(*(v.tolist() for v in x), strict=True)]
    assert tdpo2_loss(*x, beta=0.1, alpha=alpha).tolist() == pytest.approx(expected, rel=1e-12)
    first = [slow(*row, 0.1, 1.0) for row in zip(*(v.tolist() for v in x), strict=True)]
    assert tdpo1_loss(*x, beta=0.1).tolist() == pytest.approx(first, rel=1e-12)


def test_limits():
    """alpha = 0 is DPO, alpha = 1 has TDPO1's value but not its gradient."""
    w, r, k_w, k_l = (x.requires_grad_() for x in random())
    torch.testing.assert_close(tdpo2_loss(w, r, k_w, k_l, beta=0.1, alpha=0.0), dpo_loss(w, r, beta=0.1))
    one, two = tdpo1_loss(w, r, k_w, k_l, beta=0.1), tdpo2_loss(w, r, k_w, k_l, beta=0.1, alpha=1.0)
    torch.testing.assert_close(one, two)
    assert torch.autograd.grad(one.sum(), k_w)[0].abs().min() > 0
    assert torch.autograd.grad(two.sum(), k_w, allow_unused=True)[0] is None, "the chosen divergence is free"


def test_gradcheck_and_signs():
    """The loss falls with the chosen response's log-ratio and divergence and rises with the rejected one's."""
    x = [v[:8].clone().requires_grad_() for v in random()]
    assert torch.autograd.gradcheck(lambda *v: tdpo1_loss(*v, beta=0.1), x)
    fixed = x[2].detach()
    assert torch.autograd.gradcheck(lambda w, r, k: tdpo2_loss(w, r, fixed, k, beta=0.1, alpha=0.5), (x[0], x[1], x[3]))
    signs = [g.sign().unique().tolist() for g in torch.autograd.grad(tdpo1_loss(*x, beta=0.1).sum(), x)]
    assert signs == [[-1], [1], [-1], [1]]


@pytest.mark.parametrize("far", [1e4, -1e4, -1e-9])
def test_finite_far_out(far):
    x = [torch.tensor([v, -v], requires_grad=True) for v in (far, -far, abs(far), 0.0)]
    for loss in (tdpo1_loss(*x, beta=0.1), tdpo2_loss(*x, beta=0.1, alpha=0.5)):
        assert loss.isfinite().all()
        for g in torch.autograd.grad(loss.sum(), x, allow_unused=True):
            assert g is None or g.isfinite().all()


def method(kind: type[TDPO1], moved: bool):
    made = kind(policy(dtype="float64"), FrozenReference())
    made.configure_model()
    if moved:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in made.policy.parameters():
                parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("kind", [TDPO1, TDPO2])
def test_a_model_against_full_logits(kind, layout):
    """Value, and gradient of every parameter, through Hugging Face's own logits, one sequence at a time."""
    made = method(kind, True)
    batch = batch_of(WORK, PairedView(), layout=layout)
    logps = made.response_logps(batch.responses, made.needs)
    ours = made.loss(logps[0::2], logps[1::2])
    expected = []
    for unit in WORK:
        ratio, kl = [], []
        for response in unit.responses:
            ids = torch.tensor([unit.prompt + response])
            at = slice(len(unit.prompt) - 1, len(unit.prompt) + len(response) - 1)
            p = made.policy.model(input_ids=ids).logits[0, at].log_softmax(-1)
            q = made.reference.model.model(input_ids=ids).logits[0, at].log_softmax(-1).detach()
            kl.append((q.exp() * (q - p)).sum())
            ratio.append(
                (plain_logps(made.policy, unit.prompt, response)).sum()
                - plain_logps(made.reference.model, unit.prompt, response).sum().detach()
            )
        alpha, free = (1.0, kl[0]) if kind is TDPO1 else (0.5, kl[0].detach())
        expected.append(-torch.nn.functional.logsigmoid(0.1 * (ratio[0] - ratio[1] - alpha * (kl[1] - free))))
    expected = torch.stack(expected)
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)
    assert logps.sums(logps.outputs["kl"]).min() > 0.01
    parameters = list(made.policy.parameters())
    for x, y in zip(
        torch.autograd.grad(ours.sum(), parameters), torch.autograd.grad(expected.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in made.reference.model.parameters())


@pytest.mark.parametrize("kind", [TDPO1, TDPO2])
def test_at_the_start_loss_and_gradient_are_those_of_dpo(kind):
    made = method(kind, False)
    logps = made.response_logps(arrange(WORK), made.needs)
    ours = made.loss(logps[0::2], logps[1::2])
    assert ours.tolist() == pytest.approx([math.log(2)] * 3)
    plain = dpo_loss(logps[0::2].logratio, logps[1::2].logratio, beta=0.1)
    parameters = list(made.policy.parameters())
    for x, y in zip(
        torch.autograd.grad(ours.sum(), parameters, retain_graph=True),
        torch.autograd.grad(plain.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [TDPO1, TDPO2])
def test_margins_of_rewards_are_the_argument_of_the_sigmoid(kind):
    made = method(kind, True)
    logps = made.response_logps(arrange(WORK), made.needs)
    reward = made.reward(logps)
    margin = -torch.nn.functional.logsigmoid(reward[0::2] - reward[1::2])
    torch.testing.assert_close(made.loss(logps[0::2], logps[1::2]), margin)
