"""DRO-V: both gradients, its optimum, and the reward's scale, measured on the training data."""

import lightning.pytorch as pl
import pytest
import torch
from attrs import evolve
from cases import Case
from losses import assert_gradcheck, draws, gradients, made
from tiny import arrange, examples_of, unit, units
from training import fit, make, pairs_file, resumed_equals_uninterrupted

from upo.data.batch import Batch
from upo.data.example import Example, Response
from upo.data.units import Unit
from upo.data.views import UnpairedView
from upo.errors import UserError
from upo.methods.dro_v import DROV, dro_v_policy_loss, dro_v_value_loss
from upo.models.logps import ResponseLogps
from upo.rewards.length import Words

CASES = {
    DROV: Case(
        heads={"value_head"},
        metrics={"loss/preference", "loss/value"},
        stops_gradients=True,
        normaliser_cancels=False,
        defaults={"tau": 1.0},
    ),
}

REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARDS = torch.tensor([1.0, -1.0, 0.4], dtype=torch.float64)


def test_by_hand():
    """r = 1, V = .5, rho = 2, tau = .1: residual .3."""
    rho, value, reward = (torch.tensor([x]) for x in (2.0, 0.5, 1.0))
    assert dro_v_policy_loss(rho, value, reward, tau=0.1).item() == pytest.approx(0.09 / 0.2)
    assert dro_v_value_loss(rho, value, reward, tau=0.1).item() == pytest.approx(0.045)


@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
def test_gradients_are_the_papers_and_apart(tau):
    logps, reference, value, reward = draws(4, 20, scale=2.0)
    (up,) = gradients(lambda x: dro_v_policy_loss(x - reference, value, reward, tau=tau), logps)
    paper = lambda x: -(x * (reward - value) - tau / 2 * (x - reference) ** 2)  # noqa: E731
    torch.testing.assert_close(up, gradients(paper, logps)[0])
    joint = lambda x, v: 0.5 * (reward - v - tau * (x - reference)) ** 2  # noqa: E731
    by_logps, by_value = gradients(joint, logps, value)
    torch.testing.assert_close(up, by_logps / tau)
    torch.testing.assert_close(
        gradients(lambda v: dro_v_value_loss(logps - reference, v, reward, tau=tau), value)[0], by_value
    )
    rho, v = (logps - reference).requires_grad_(), value.clone().requires_grad_()
    for loss, other in ((dro_v_policy_loss, v), (dro_v_value_loss, rho)):
        assert torch.autograd.grad(loss(rho, v, reward, tau=tau).sum(), other, allow_unused=True)[0] is None


def test_gradcheck_and_finite_far_out():
    rho, value, reward = draws(3, 8, scale=2.0)
    assert_gradcheck(lambda x: dro_v_policy_loss(x, value, reward, tau=0.7), rho)
    assert_gradcheck(lambda v: dro_v_value_loss(rho, v, reward, tau=0.7), value)
    far, zero = torch.tensor([1e4, -1e4, -1e-9]), torch.zeros(3)
    by_policy = lambda x: dro_v_policy_loss(x, zero, zero, tau=1.0)  # noqa: E731
    by_value = lambda v: dro_v_value_loss(far, v, zero, tau=1.0)  # noqa: E731
    for loss, x in ((by_policy, far), (by_value, zero), (by_value, far)):
        assert loss(x).isfinite().all() and gradients(loss, x)[0].isfinite().all()


def test_descending_both_gradients_ends_at_the_closed_form():
    """A prompt with three responses: reference * exp(r / tau) / Z, V = tau log Z, both losses 0."""
    tau = 0.5
    theta = REFERENCE.log().clone().requires_grad_()
    value = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta, value], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        rho = theta.log_softmax(0) - REFERENCE.log()
        v = value.expand(3)
        loss = dro_v_policy_loss(rho, v, REWARDS, tau=tau) + dro_v_value_loss(rho, v, REWARDS, tau=tau)
        loss.mean().backward()
        optimizer.step()
    tilted = REFERENCE * torch.exp(REWARDS / tau)
    torch.testing.assert_close(theta.detach().softmax(0), tilted / tilted.sum(), atol=1e-4, rtol=0)
    torch.testing.assert_close(value.detach(), tau * tilted.sum().log()[None], atol=1e-4, rtol=0)
    assert loss.max() < 1e-6


def test_with_the_best_v_of_two_responses_it_is_a_regression_of_their_difference():
    rho, reward = draws(2, 2, scale=1.0)
    best = (reward - 0.7 * rho).mean().expand(2)
    gap = (reward[0] - reward[1]) - 0.7 * (rho[0] - rho[1])
    torch.testing.assert_close(dro_v_value_loss(rho, best, reward, tau=0.7).sum(), gap**2 / 4)


# ---- the class -----------------------------------------------------------------------------------------------------


def labelled(*responses: tuple[bool, float]) -> Unit:
    """A unit of labelled responses with a measured length."""
    made = tuple(Response("x", desirable=good, rewards={"length": length}) for good, length in responses)
    return Unit.of([3], ([4],) * len(made), Example("p", made))


def test_the_scale_is_that_of_all_responses_of_the_training_data():
    """r = +-1 + 0.5 length: 2, -1, 0 and 3, mean 1, variance (1 + 4 + 1 + 4) / 4."""
    method = made(DROV, reward_weights={"length": 0.5})
    work = [labelled((True, 2.0), (False, 0.0)), labelled((False, 2.0)), labelled((True, 4.0))]
    assert method.measure_scale(work) == pytest.approx((1.0, 2.5**0.5))
    assert made(DROV, preference_weight=3.0).measure_scale(work) == pytest.approx((0.0, 3.0))


def test_equal_rewards_are_refused():
    with pytest.raises(UserError, match=r"all 2 responses .* r = 1;"):
        made(DROV).measure_scale([labelled((True, 0.0)), labelled((True, 5.0))])


def test_terms_use_the_scale_and_the_prompts_value():
    method = made(DROV, reward_weights={"length": 0.5}, reward_scale=(1.0, 2.0), tau=0.5, preference_weight=2.0)
    method.value_head = lambda hidden: hidden.sum(1)
    batch = Batch(arrange(units([(2, [1, 1]), (2, [1])])), {"preferred": torch.tensor([True, False, True])})
    logps = ResponseLogps(
        torch.tensor([-1.0, -2.0, -3.0]), torch.ones(3, dtype=torch.long), torch.tensor([0, 0, 1]),
        torch.tensor([-1.5, -2.0, -1.0]), torch.tensor([[2.0], [0.0], [4.0]]),
        {"prompt_hidden": torch.tensor([[0.1], [0.3]])},
    )  # fmt: skip
    reward = torch.tensor([(2 + 1 - 1) / 2, (-2 + 0 - 1) / 2, (2 + 2 - 1) / 2])
    torch.testing.assert_close(method.standardized(batch, logps), reward)
    residual = reward - torch.tensor([0.1, 0.1, 0.3]) - 0.5 * torch.tensor([0.5, 0.0, -2.0])
    terms = method.terms(batch, logps, {})
    torch.testing.assert_close(terms["preference"].values, residual**2)
    torch.testing.assert_close(terms["value"].values, 0.5 * residual**2)
    assert {t.mean_over for t in terms.values()} == {"responses"}


def test_rewards_of_a_run_have_mean_0_and_variance_1(tmp_path):
    method = make(DROV, reward_weights={"length": 0.3})
    done = fit(method, tmp_path, steps=1, rewards={"length": Words()}, rewards_cache=str(tmp_path / "cache"))
    steps = list(done.data.loader(done.data.train, shuffle=False))
    every = []
    for batch in (b for step in steps for b in step.micro_batches):
        r = batch.responses
        every.append(method.standardized(batch, ResponseLogps(r.lengths, r.lengths, r.prompt_index, rewards=r.rewards)))
    every = torch.cat(every)
    assert len(every) == 16
    assert every.mean().item() == pytest.approx(0, abs=1e-6) and every.std(correction=0).item() == pytest.approx(1)
    saved = method.state_dict()["reward_scale"]
    assert saved[0] != 0 and saved[1] != 1


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    resumed_equals_uninterrupted(DROV, pl.Callback, tmp_path, pairs=pairs_file(tmp_path))


def test_a_pair_is_worth_1_and_minus_1():
    example = unit([3], [4], [5]).example
    ranked = example.with_responses(tuple(evolve(r, rank=i) for i, r in enumerate(example.responses)))
    (view,) = examples_of(UnpairedView(), ranked, 5)
    assert made(DROV).measure_scale([evolve(unit([3], [4], [5]), example=view)]) == (0.0, 1.0)
