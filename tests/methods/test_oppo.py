"""oPPO: clipped ratios, generalized advantages, whitening over the whole step, and who gets which gradient."""

import math

import pytest
import torch
from attrs import evolve
from losses import assert_gradcheck, draws, gradients, made
from tiny import arrange, policy, units

from upo.data.batch import Batch, Step
from upo.errors import UserError
from upo.functional.segments import discounted_sums
from upo.methods.oppo import AOPPO, OPPO, generalized_advantage, ppo_loss
from upo.models.reference import FrozenReference

CLIP = {"low": 0.5, "high": 2.0}
ROW = torch.tensor([0, 0, 0, 1, 2, 2])


def slow_advantages(reward: list[float], value: list[float], gamma: float, lam: float) -> list[float]:
    """Backwards through each response, as PPO is usually written."""
    row, result = ROW.tolist(), [0.0] * len(ROW)
    for t in reversed(range(len(row))):
        last = t + 1 == len(row) or row[t + 1] != row[t]
        delta = reward[t] + (0.0 if last else gamma * value[t + 1]) - value[t]
        result[t] = delta + (0.0 if last else gamma * lam * result[t + 1])
    return result


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_advantages_against_a_slow_reference(gamma, lam):
    reward, value = draws(2, 6, scale=1.0)
    ours = generalized_advantage(reward, value, ROW, gamma=gamma, lam=lam)
    assert ours.tolist() == pytest.approx(slow_advantages(reward.tolist(), value.tolist(), gamma, lam), abs=1e-12)


def test_advantages_by_hand():
    """r = (0, 1), V = (0.5, 0.2), gamma = 0.5, lam = 0.5: delta = (-0.4, 0.8), A = (-0.4 + 0.25 * 0.8, 0.8)."""
    reward, value = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.2])
    got = generalized_advantage(reward, value, torch.tensor([0, 0]), gamma=0.5, lam=0.5)
    assert got.tolist() == pytest.approx([-0.2, 0.8])


def test_without_discount_the_advantage_is_return_minus_value():
    reward, value = draws(2, 6, scale=1.0)
    got = generalized_advantage(reward, value, ROW, gamma=1.0, lam=1.0)
    torch.testing.assert_close(got, discounted_sums(reward, ROW, 1.0) - value)


def test_loss_by_hand():
    """Ratio 4 and 1/4 with advantages of both signs: clipped where the push has gone far enough."""
    rho = torch.tensor([4.0, 4.0, 0.25, 0.25, 1.0], dtype=torch.float64).log()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 3.0], dtype=torch.float64)
    assert ppo_loss(rho, advantage, **CLIP).tolist() == pytest.approx([-2.0, 4.0, -0.25, 0.5, -3.0])
    slope = gradients(lambda x: ppo_loss(x, advantage, **CLIP), rho)[0]
    assert slope.tolist() == pytest.approx([0.0, 4.0, -0.25, 0.0, -3.0])


def test_loss_is_checked_and_finite_far_out():
    advantage = draws(6, scale=1.0)
    assert_gradcheck(lambda x: ppo_loss(x, advantage, **CLIP), draws(6, scale=0.3, seed=1))
    for far in (1e4, -1e4, 0.0, -1e-9):
        rho = torch.full((2,), far)
        both = torch.tensor([1.0, -1.0])
        assert ppo_loss(rho, both, **CLIP).isfinite().all()
        assert gradients(lambda x, both=both: ppo_loss(x, both, **CLIP), rho)[0].isfinite().all()


def test_a_clip_that_excludes_the_reference_is_refused():
    with pytest.raises(UserError, match="clip_high"):
        made(OPPO, clip_high=0.9)


# ---- a real policy -------------------------------------------------------------------------------------------------

WORK = units([(3, [9, 2]), (5, [1, 3]), (2, [4, 4])])
REWARDS = torch.tensor([[0.9, 0.1], [0.2, 1.0], [0.5, 0.5], [0.0, 0.3], [1.0, 0.0], [0.4, 0.7]])


def method(kind=OPPO, **options):
    made = kind(policy(), FrozenReference(), **options)
    made.reference.model = policy(seed=1)
    torch.manual_seed(0)
    made.add_heads()
    return made


def batch(which: slice = slice(None), dummy: bool = False) -> Batch:
    rewards = REWARDS.view(3, 2, 2)[which].reshape(-1, 2)
    n = len(rewards)
    labels = {"preferred": torch.tensor([True, False] * (n // 2))}
    return Batch(evolve(arrange(WORK[which]), rewards=rewards), labels, dummy=dummy)


def everything(*batches: Batch) -> Step:
    return Step(batches, batch().counts)


def test_the_reward_is_on_the_last_token():
    one, plain = batch(), method()
    rewards = plain.token_rewards(one)
    last = one.responses.lengths.cumsum(0) - 1
    assert rewards[last].tolist() == [1.0, -1.0] * 3 and rewards.abs().sum() == 6
    added = method(AOPPO, reward_weights={"a": 0.5, "b": 2.0}).token_rewards(one)
    r = 0.5 * REWARDS[:, 0] + 2 * REWARDS[:, 1]
    torch.testing.assert_close(added[last], torch.tensor([1.0, -1.0] * 3) + r)
    assert (added != 0).sum() == 6


def test_a_token_alone_without_value_is_likelihood_weighted_by_whitened_rewards():
    """At the reference: ratio 1, so the gradient by log pi is -A, and A of balanced labels is +1 and -1."""
    made = method()
    made.reference.model = made.policy
    torch.nn.init.zeros_(made.value_head.layers[-1].weight)
    torch.nn.init.zeros_(made.value_head.layers[-1].bias)
    one = Batch(arrange(units([(3, [1, 1]), (2, [1, 1])])), {"preferred": torch.tensor([True, False] * 2)})
    statistics = made.statistics(Step((one,), one.counts))
    assert [x.item() for x in statistics.values()] == pytest.approx([0.0, 1.0], abs=1e-6)
    logps = made.response_logps(one.responses, made.needs)
    terms = made.terms(one, logps, statistics)
    assert terms["preference"].values.tolist() == pytest.approx([-1.0, 1.0, -1.0, 1.0])
    (slope,) = torch.autograd.grad(terms["preference"].values.sum(), logps.outputs["token_logps"])
    assert slope.tolist() == pytest.approx([-1.0, 1.0, -1.0, 1.0])
    assert terms["value"].values.tolist() == [0.5] * 4


def test_terms_against_the_definition():
    made, one = method(), batch()
    statistics = made.statistics(everything(one))
    logps = made.response_logps(one.responses, made.needs)
    terms = made.terms(one, logps, statistics)
    rho = (logps.outputs["token_logps"] - logps.reference_outputs["token_logps"]).tolist()
    value, row = made.value_head(logps.outputs["hidden"]).tolist(), one.responses.response_index.tolist()
    raw, target = [], []
    for t, n in enumerate(row):
        later = [i for i in range(t, len(row)) if row[i] == n]
        reward = {later[-1]: 1.0 if n % 2 == 0 else -1.0}
        target.append(0.99 ** (len(later) - 1) * reward[later[-1]])
        deltas = [
            reward.get(i, 0.0) + (0.99 * value[i + 1] if k + 1 < len(later) else 0.0) - value[i]
            for k, i in enumerate(later)
        ]
        raw.append(sum((0.99 * 0.95) ** k * d for k, d in enumerate(deltas)))
    mean = sum(raw) / len(raw)
    std = math.sqrt(sum((a - mean) ** 2 for a in raw) / len(raw) + 1e-8)
    for t, a in enumerate(raw):
        ratio, white = math.exp(rho[t]), (a - mean) / std
        expected = max(-white * ratio, -white * min(max(ratio, 0.5), 2.0))
        assert terms["preference"].values[t].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert terms["value"].values[t].item() == pytest.approx(0.5 * (value[t] - target[t]) ** 2, rel=1e-4)
        assert terms["kl"].values[t].item() == pytest.approx(rho[t], abs=1e-6)
    assert (terms["value"].weight, terms["kl"].weight) == (0.01, 0.1)


@pytest.mark.parametrize("kind", [OPPO, AOPPO])
def test_the_split_of_a_step_does_not_matter(kind):
    """Loss and gradient of one micro-batch of all, and of three with a dummy between them."""
    options = {"reward_weights": {"a": 0.5, "b": 2.0}} if kind is AOPPO else {}
    results = []
    for parts in ((batch(),), (batch(slice(0, 1)), batch(slice(1, 2)), batch(slice(2, 3)), batch(slice(0, 1), True))):
        made, step = method(kind, **options), everything(*parts)
        statistics = made.statistics(step)
        loss = sum(made.loss_of(part, step, statistics, "train") for part in parts)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])
        results.append((loss.item(), gradient))
    (loss, gradient), (cut_loss, cut_gradient) = results
    assert cut_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(cut_gradient, gradient, rtol=1e-3, atol=1e-6)


def test_whitening_per_micro_batch_would_be_something_else():
    made = method()
    whole = made.statistics(everything(batch()))["advantages/mean"]
    alone = made.statistics(everything(batch(slice(0, 1))))["advantages/mean"]
    assert abs(whole - alone) > 1e-3


def test_the_value_head_does_not_move_the_policy_nor_the_policy_loss_the_head():
    made, one = method(), batch()
    logps = made.response_logps(one.responses, made.needs)
    terms = made.terms(one, logps, made.statistics(everything(one)))

    def reached(value: torch.Tensor, module: torch.nn.Module) -> bool:
        found = torch.autograd.grad(value, list(module.parameters()), allow_unused=True, retain_graph=True)
        return any(g is not None and g.any() for g in found)

    assert not reached(terms["value"].values.sum(), made.policy)
    assert reached(terms["value"].values.sum(), made.value_head)
    assert reached(terms["preference"].values.sum(), made.policy)
    for name in ("preference", "kl"):
        if terms[name].values.requires_grad:
            assert not reached(terms[name].values.sum(), made.value_head)


def test_desirable_tokens_go_up_and_undesirable_ones_down():
    """With V = 0 and no penalty, by the gradient of the loss at the reference."""
    made, one = method(kl_coefficient=0.0), batch()
    made.reference.model = made.policy
    torch.nn.init.zeros_(made.value_head.layers[-1].weight)
    torch.nn.init.zeros_(made.value_head.layers[-1].bias)
    logps = made.response_logps(one.responses, made.needs)
    terms = made.terms(one, logps, made.statistics(everything(one)))
    (slope,) = torch.autograd.grad(terms["preference"].values.sum(), logps.outputs["token_logps"])
    good = one.preferred[one.responses.response_index]
    assert (slope[good] < 0).all() and (slope[~good] > 0).all()
