"""beta-DPO: the draw, the beta of a step, the moving averages, and a step that is cut in any way."""

import math

import pytest
import torch
from cases import Case
from losses import draws
from tiny import data_of, units
from training import fit, make, resumed_equals_uninterrupted

from upo.callbacks.reference_sync import ReferenceSync
from upo.data.batch import Step
from upo.data.samplers import StepSampler
from upo.data.views import PairedView
from upo.methods import DPO
from upo.methods.beta_dpo import BetaDPO, draw_pairs, dynamic_beta
from upo.methods.common.ranges import Share

CASES = {
    BetaDPO: Case(
        metrics={"beta", "gaps/mean", "gaps/spread"},
        normaliser_cancels=True,
        defaults={"beta": 0.1, "a": 0.6, "rho": 0.2, "momentum": 0.9},
    ),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_beta_by_hand():
    """0.1 (1 + 0.6 (5 - 2)) = 0.28; far below average it stays at 0.001."""
    assert dynamic_beta(5.0, 2.0, beta=0.1, a=0.6) == pytest.approx(0.28)
    assert dynamic_beta(-50.0, 2.0, beta=0.1, a=0.6) == 1e-3
    assert dynamic_beta(5.0, 2.0, beta=0.1, a=0.0) == 0.1


@pytest.mark.parametrize("kept", [1, 3])
def test_pairs_are_drawn_without_replacement_with_their_weights(kept):
    """Four pairs, all draws of 5,000 against the exact probabilities, multiplied out."""
    gaps, mean, spread = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64), 1.0, 1.5
    weights = [math.exp(-((g - mean) ** 2) / (2 * spread**2)) for g in gaps.tolist()]

    def included(chosen: int, left: tuple[int, ...], n: int) -> float:
        if n == 0:
            return 0.0
        total = sum(weights[i] for i in left)
        return sum(
            weights[i] / total * (1.0 if i == chosen else included(chosen, tuple(j for j in left if j != i), n - 1))
            for i in left
        )

    source, times = generator(), 5_000
    counts = sum(draw_pairs(gaps, mean, spread, kept=kept, generator=source).double() for _ in range(times))
    expected = [included(i, (0, 1, 2, 3), kept) for i in range(4)]
    assert (counts / times).tolist() == pytest.approx(expected, abs=0.03)
    assert counts.sum() == kept * times


def test_the_draw_goes_by_gaps_and_not_by_places():
    gaps, order = draws(40), torch.randperm(40, generator=generator(3))
    stays = draw_pairs(gaps, 0.0, 10.0, kept=20, generator=generator())
    again = draw_pairs(gaps[order], 0.0, 10.0, kept=20, generator=generator())
    assert torch.equal(stays[order], again)
    assert not torch.equal(stays, draw_pairs(gaps, 0.0, 10.0, kept=20, generator=generator(1)))


def test_weights_that_underflow_still_give_a_draw():
    """The official code's multinomial has only zeros to draw from here."""
    stays = draw_pairs(torch.tensor([1e4, -1e4, 5e3], dtype=torch.float64), 0.0, 1e-2, kept=2, generator=generator())
    assert stays.tolist() == [False, True, True] or stays.tolist() == [True, False, True]


# ---- steps ---------------------------------------------------------------------------------------------------------

WORK = units([(3, [9, 2]), (5, [1, 2]), (2, [4, 3]), (7, [2, 5]), (4, [6, 3]), (1, [1, 1]), (2, [2, 7])])


def ready(**options) -> BetaDPO:
    """A policy that differs from its reference."""
    method = make(BetaDPO, **options)
    method.configure_model()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return method


def steps(budget: int, world_size: int = 1, work=WORK) -> Step:
    """One step; several ranks' micro-batches one behind the other."""
    data = data_of(
        list(work), PairedView(), layout="packed", tokens_per_microbatch=budget, max_length=64, pad_id=0, rewards=(),
        seed=0,
    )  # fmt: skip
    costs = [data.cost(i) for i in range(len(data))]
    ranks = [
        next(iter(StepSampler(
            costs, units_per_step=len(data), tokens_per_microbatch=budget, shuffle=False, seed=0, rank=rank,
            world_size=world_size,
        )))
        for rank in range(world_size)
    ]  # fmt: skip
    parts = [data[plan] for plan in ranks]
    return Step(tuple(b for part in parts for b in part.micro_batches), parts[0].counts)


def gaps_of(method: BetaDPO) -> torch.Tensor:
    one = steps(10_000)
    with torch.no_grad():
        logratio = method.response_logps(one.micro_batches[0].responses).logratio.double()
    return logratio[0::2] - logratio[1::2]


def loss_and_gradient(method: BetaDPO, step: Step) -> tuple[float, torch.Tensor]:
    statistics = method.statistics(step)
    loss = sum(method.loss_of(b, step, statistics, "train") for b in step.micro_batches)
    gradient = torch.autograd.grad(loss, list(method.policy.parameters()))
    return loss.item(), torch.cat([g.flatten() for g in gradient])


def test_a_step_by_hand():
    method = ready(a=0.6, rho=Share(0.3))
    gaps = gaps_of(method)
    mean, spread = 0.1 * gaps.mean().item(), 0.1 * gaps.std().item()
    stays = draw_pairs(gaps, mean, spread, kept=4, generator=generator())
    beta = max(1e-3, 0.1 * (1 + 0.6 * (gaps[stays].mean().item() - mean)))
    loss, _ = loss_and_gradient(method, steps(10_000))
    assert loss == pytest.approx(-torch.nn.functional.logsigmoid(beta * gaps[stays]).mean().item(), rel=1e-4)
    assert method.gap_mean.item() == pytest.approx(mean, rel=1e-4)
    assert method.gap_spread.item() == pytest.approx(spread, rel=1e-4)
    logged = method.compute_metrics("train")
    assert {"rewards/accuracies", "loss"} <= set(logged)


def test_averages_move_once_a_step_from_0_and_not_in_validation():
    method = ready()
    gaps = gaps_of(method)
    for n in (1, 2, 3):
        method.statistics(steps(16))
        assert method.gap_mean.item() == pytest.approx((1 - 0.9**n) * gaps.mean().item(), rel=1e-3)
    before = method.gap_mean.item(), method.gap_spread.item()
    statistics = method.eval().statistics(steps(16))
    assert (method.gap_mean.item(), method.gap_spread.item()) == before
    assert statistics["beta"].item() == 0.1 and statistics["weights"].tolist() == [1.0] * 7


@pytest.mark.parametrize(("budget", "world_size"), [(1, 1), (16, 1), (16, 2), (1, 2), (12, 3)])
def test_the_cut_of_a_step_does_not_matter(budget, world_size):
    """Ranks' micro-batches side by side, dummies included."""
    method, other = ready(), ready()
    loss, gradient = loss_and_gradient(method, steps(10_000))
    cut = steps(budget, world_size)
    assert len(cut.micro_batches) > 1
    again, gradient2 = loss_and_gradient(other, cut)
    assert again == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(gradient, gradient2, rtol=1e-3, atol=1e-6)


def test_without_a_and_rho_it_is_dpo():
    method, dpo = ready(a=0.0, rho=Share(0.0)), make(DPO)
    dpo.configure_model()
    dpo.policy.load_state_dict(method.policy.state_dict())
    one = steps(16)
    loss, _ = loss_and_gradient(method, one)
    assert loss == pytest.approx(sum(dpo.loss_of(b, one, {}, "train").item() for b in one.micro_batches), rel=1e-5)


def test_the_number_of_kept_pairs_and_their_weight():
    for rho, kept in ((0.2, 5), (0.5, 3), (0.9, 1), (0.99, 1), (0.0, 7)):
        weights = ready(rho=Share(rho)).statistics(steps(16))["weights"]
        assert (weights > 0).sum() == kept
        assert weights.sum().item() == pytest.approx(7, rel=1e-5)


def test_equal_models_are_no_0_by_0_and_leave_nothing_out():
    method = make(BetaDPO)
    method.configure_model()
    statistics = method.statistics(steps(16))
    assert statistics["weights"].tolist() == [1.0] * 7
    loss, gradient = loss_and_gradient(method, steps(16))
    assert loss == pytest.approx(math.log(2), abs=1e-5) and gradient.isfinite().all()


def test_a_step_of_one_pair():
    method = ready()
    loss, gradient = loss_and_gradient(method, steps(16, work=WORK[:1]))
    assert math.isfinite(loss) and gradient.isfinite().all()
    assert method.gap_spread.item() == 0


def test_beta_has_no_gradient():
    statistics = ready().statistics(steps(16))
    assert not any(x.requires_grad for x in statistics.values())


def test_averages_survive_a_kill(tmp_path):
    resumed_equals_uninterrupted(BetaDPO, lambda: ReferenceSync(0.0, 1000), tmp_path, pairs_per_step=4)


def test_trained_by_the_trainer_it_logs_its_beta(tmp_path):
    metrics = fit(make(BetaDPO), tmp_path, pairs_per_step=4, tokens_per_microbatch=50).trainer.callback_metrics
    assert metrics["train/beta"] > 0 and metrics["train/gaps/spread"] > 0
