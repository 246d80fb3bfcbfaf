"""OREO: the soft Bellman errors by token, line and response, who gets which gradient, and what is a step."""

import pytest
import torch
from losses import assert_gradcheck, draws, gradients, made
from tiny import arrange, policy, unit

from upo.data.batch import Batch, Step
from upo.data.units import Unit
from upo.functional.segments import later_sums
from upo.methods.oreo import OREO, StepOREO, TrajectoryOREO, oreo_policy_loss, oreo_value_loss
from upo.models.reference import FrozenReference

OWNER = torch.tensor([0, 0, 0, 1, 2, 2])
REWARD = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)


def slow(rho: list[float], value: list[float], beta: float) -> list[float]:
    """The errors of all steps, one loop inside another, then squares and means: both losses have this value."""
    result = []
    for n, reward in enumerate(REWARD.tolist()):
        mine = [i for i, owner in enumerate(OWNER.tolist()) if owner == n]
        errors = [value[t] + beta * sum(rho[i] for i in mine if i >= t) - reward for t in mine]
        result.append(sum(e * e for e in errors) / len(errors))
    return result


@pytest.mark.parametrize("loss", [oreo_policy_loss, oreo_value_loss])
def test_against_a_slow_reference(loss):
    rho, value = draws(2, 6)
    expected = slow(rho.tolist(), value.tolist(), 0.3)
    assert loss(rho, value, REWARD, OWNER, beta=0.3).tolist() == pytest.approx(expected, rel=1e-12)


def test_by_hand():
    """R = 1, V = (0.5, 0), rho = (1, 2), beta = 0.1: errors 0.5 + 0.3 - 1 = -0.2 and 0 + 0.2 - 1 = -0.8."""
    rho, value = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0])
    one, owner = torch.tensor([1.0]), torch.tensor([0, 0])
    assert oreo_policy_loss(rho, value, one, owner, beta=0.1).item() == pytest.approx(0.34)
    down = gradients(lambda x: oreo_policy_loss(x, value, one, owner, beta=0.1), rho)[0]
    assert down.tolist() == pytest.approx([0.1 * -0.2, 0.1 * -0.8])  # not the first error as well
    up = gradients(lambda v: oreo_value_loss(rho, v, one, owner, beta=0.1), value)[0]
    assert up.tolist() == pytest.approx([-0.2, -0.8])


def test_both_are_0_at_a_soft_optimal_solution():
    """V(s_t) = R - beta sum_{i >= t} rho_i at every state."""
    rho = draws(6)[0:6]
    value = REWARD[OWNER] - 0.3 * (rho + later_sums(rho, OWNER))
    for loss in (oreo_policy_loss, oreo_value_loss):
        assert loss(rho, value, REWARD, OWNER, beta=0.3).tolist() == pytest.approx([0] * 3, abs=1e-20)


def test_the_policy_loss_moves_only_its_own_step_and_never_the_value():
    rho, value = (x.requires_grad_() for x in draws(2, 6, scale=1.0))
    by_rho, by_value = torch.autograd.grad(
        oreo_policy_loss(rho, value, REWARD, OWNER, beta=0.3).sum(), (rho, value), allow_unused=True
    )
    error = value + 0.3 * (rho + later_sums(rho, OWNER)) - REWARD[OWNER]
    torch.testing.assert_close(by_rho, 2 * 0.3 * error.detach() / torch.tensor([3.0, 3, 3, 1, 2, 2]))
    assert by_value is None
    assert torch.autograd.grad(
        oreo_value_loss(rho, value, REWARD, OWNER, beta=0.3).sum(), (rho, value), allow_unused=True
    )[0] is None  # fmt: skip


def test_one_step_is_dro_and_the_gradient_is_checked():
    """With a horizon of one nothing is detached: (V - R + beta rho)^2."""
    rho, value = draws(2, 3, scale=1.0)
    owner = torch.arange(3)
    torch.testing.assert_close(oreo_policy_loss(rho, value, REWARD, owner, beta=0.3), (value - REWARD + 0.3 * rho) ** 2)
    assert_gradcheck(lambda x: oreo_policy_loss(x, value, REWARD, owner, beta=0.3), rho)
    assert_gradcheck(lambda v: oreo_value_loss(rho, v, REWARD, owner, beta=0.3), value)


@pytest.mark.parametrize("far", [1e4, -1e4, -1e-9])
def test_finite_far_out(far):
    rho, value = torch.full((6,), far), torch.zeros(6)
    reward = REWARD.float()
    for loss in (oreo_policy_loss, oreo_value_loss):
        assert loss(rho, value, reward, OWNER, beta=0.03).isfinite().all()
        for x in gradients(lambda v, loss=loss: loss(rho + v, v, reward, OWNER, beta=0.03), value):
            assert x.isfinite().all()


def test_responses_do_not_leak_into_each_other():
    rho = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    assert later_sums(rho, OWNER).tolist() == [6, 4, 0, 0, 32, 0]
    assert not later_sums(rho.requires_grad_(), OWNER).requires_grad


def lines(method, *texts: str):
    tokenizer = method.policy.tokenizer
    work = [Unit.of([5], tuple([*tokenizer(t).input_ids, 2] for t in texts), unit([5], *([1],) * len(texts)).example)]
    return arrange(work)


def test_what_a_step_is():
    text, other = "One line.\n\nTwo.\nEnd", "Alone"
    method = made(StepOREO)
    method.policy = policy()
    responses = lines(method, text, other)
    decode = method.policy.tokenizer.decode
    starts = method.starts(responses)
    first = starts.nonzero()[:, 0].tolist()
    parts = [decode(responses.targets[a:b]) for a, b in zip(first, [*first[1:], None], strict=True)]
    assert parts == ["One line.\n\n", "Two.\n", "End<|end|>", "Alone<|end|>"]
    assert OREO.starts(method, responses).all()
    assert TrajectoryOREO.starts(method, responses).nonzero()[:, 0].tolist() == [0, int(responses.lengths[0])]


@pytest.mark.parametrize("kind", [OREO, StepOREO, TrajectoryOREO])
def test_terms_of_a_real_policy(kind):
    """With a fresh value head, against the definition; the divergence is that of the whole vocabulary."""
    method = kind(policy(), FrozenReference(), beta=0.5, wrong_reward=-1.0)
    method.reference.model = policy(seed=1)
    method.add_heads()
    responses = lines(method, "One.\nTwo.", "Blue")
    batch = Batch(responses, {"preferred": torch.tensor([True, False])})
    logps = method.response_logps(responses, method.needs)
    terms = method.terms(batch, logps, {})
    starts = method.starts(responses)
    rho = (logps.outputs["token_logps"] - logps.reference_outputs["token_logps"]).tolist()
    value = method.value_head(logps.outputs["hidden"]).tolist()
    for n, reward in enumerate((1.0, -1.0)):
        mine = [i for i, row in enumerate(responses.response_index.tolist()) if row == n]
        errors = [value[t] + 0.5 * sum(rho[i] for i in mine if i >= t) - reward for t in mine if starts[t]]
        expected = sum(e * e for e in errors) / len(errors)
        assert terms["preference"].values[n].item() == pytest.approx(expected, rel=1e-4)
        assert terms["value"].values[n].item() == pytest.approx(expected, rel=1e-4)
    assert terms["kl"].weight == 0.01 and (terms["kl"].values > 0).all()
    of_policy = torch.autograd.grad(terms["value"].values.sum(), list(method.policy.parameters()), allow_unused=True)
    assert all(g is None for g in of_policy), "the value reads the policy's states and does not move them"
    loss = method.loss_of(batch, Step((batch,), batch.counts), {}, "val")
    total = sum(t.weight * t.values.mean() for t in terms.values())
    torch.testing.assert_close(loss, total)
