"""KTO: the loss, and z0 over a step that is cut in any way."""

import copy
import math
import warnings

import pytest
import torch
from cases import Case
from fake_ranks import on_ranks
from tiny import data_of, plain_logps, unit, units

from upo.data.batch import Step
from upo.data.samplers import StepSampler
from upo.data.steps import StepData
from upo.methods.kto import KTO, KTOView, kto_loss
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

CASES = {
    KTO: Case(
        metrics={"kl"},
        normaliser_cancels=False,
        defaults={"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    ),
}

BETA = 0.1


def slow(r: float, good: bool, z0: float, w_d: float = 1.0, w_u: float = 1.0) -> float:
    """lambda_y - v(x, y) as the paper writes it: v = lambda_y sigmoid(+-beta (r - z0))."""
    x = BETA * (r - z0) * (1 if good else -1)
    v = 1 / (1 + math.exp(-x)) if x > -700 else 0.0
    return (w_d if good else w_u) * (1 - v)


def loss(ratio, desirable, z0=0.0, **weights):
    return kto_loss(ratio, torch.tensor(desirable), torch.tensor(z0, dtype=ratio.dtype), beta=BETA, **weights)


@pytest.mark.parametrize(
    ("ratio", "desirable", "golden"),
    [(2.0, True, 0.462570), (-3.0, True, 0.586618), (-5.0, False, 0.365864), (-10.0, False, 0.259225)],
)
def test_golden_values(ratio, desirable, golden):
    """Both fixtures of the specification with z0 = 0.5: -40 + 42, -45 + 42, -55 + 50, -60 + 50."""
    value = loss(torch.tensor([ratio], dtype=torch.float64), [desirable], 0.5)
    assert value.item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """beta (r - z0) = 0.1 (12 - 2) = 1: 1 - sigmoid(1) and sigmoid(1)."""
    value = loss(torch.tensor([12.0, 12.0]), [True, False], 2.0, desirable_weight=2.0, undesirable_weight=3.0)
    assert value.tolist() == pytest.approx([2 * 0.2689414, 3 * 0.7310586])


@pytest.mark.parametrize("z0", [0.0, 0.5, 30.0])
def test_against_a_slow_reference(z0):
    ratios = 30 * torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = [i % 3 == 0 for i in range(60)]
    expected = [slow(r, good, z0, 1.3, 0.7) for r, good in zip(ratios.tolist(), labels, strict=True)]
    ours = loss(ratios, labels, z0, desirable_weight=1.3, undesirable_weight=0.7)
    assert ours.tolist() == pytest.approx(expected, rel=1e-10)


def test_shifting_the_ratios_and_z0_alike_changes_nothing():
    ratios, labels = torch.linspace(-40, 40, 9, dtype=torch.float64), [True, False] * 4 + [True]
    torch.testing.assert_close(loss(ratios, labels, 1.0), loss(ratios + 17, labels, 18.0))
    assert not torch.allclose(loss(ratios, labels, 1.0), loss(ratios + 17, labels, 1.0), atol=1e-3)


def test_half_its_weight_and_exact_gradients_where_policy_is_reference():
    r = torch.zeros(2, requires_grad=True)
    value = loss(r, [True, False], desirable_weight=1.5, undesirable_weight=0.5)
    assert value.tolist() == [0.75, 0.25]
    assert torch.autograd.grad(value.sum(), r)[0].tolist() == pytest.approx([-1.5 * BETA / 4, 0.5 * BETA / 4])


def test_gradcheck_and_signs():
    r = torch.linspace(-25, 25, 8, dtype=torch.float64, requires_grad=True)
    labels = [True, False] * 4
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, 0.5), r)
    (gradient,) = torch.autograd.grad(loss(r, labels, 0.5).sum(), r)
    assert (gradient[0::2] < 0).all() and (gradient[1::2] > 0).all()


@pytest.mark.parametrize("far", [1e4, -1e4, -1e-9])
@pytest.mark.parametrize("z0", [0.0, 1e4])
def test_finite_far_out(far, z0):
    r = torch.tensor([far, far], requires_grad=True)
    value = loss(r, [True, False], z0)
    assert value.isfinite().all() and torch.autograd.grad(value.sum(), r)[0].isfinite().all()
    assert value.tolist() == pytest.approx([slow(far, True, z0), slow(far, False, z0)], abs=1e-6)


# ---- z0 ------------------------------------------------------------------------------------------------------------


def method() -> KTO:
    """A policy that differs from its reference."""
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.2}
    made = KTO(Policy(config=config, tokenizer="tiny.tokenizer", dtype="float64"), FrozenReference())
    torch.manual_seed(0)
    made.configure_model()
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return made


def split(work, budget: int = 200, layout: str = "packed", **kwargs) -> StepData:
    fields = {
        "tokens_per_microbatch": budget,
        "max_length": 64,
        "pad_id": 0,
        "rewards": (),
        "seed": 3,
    } | kwargs
    return data_of(list(work), KTOView(), layout=layout, **fields)


WORK = units([(3, [9, 2]), (5, [1]), (2, [4, 4]), (7, [2]), (4, [6, 3]), (1, [1])])


@torch.no_grad()
def z0_by_hand(kto: KTO, data: StepData) -> float:
    """Sum and count over every borrowed response, one sequence at a time; clamped at the end."""
    total, count = 0.0, 0
    for own in data.units:
        (borrowed,) = own.mismatched
        for response in borrowed.responses:
            prompt = own.prompt
            total += float(
                (plain_logps(kto.policy, prompt, response) - plain_logps(kto.reference.model, prompt, response)).sum()
            )
            count += 1
    return max(0.0, total / count)


def swap(kto: KTO) -> KTO:
    """Policy and reference exchange their weights: all log-ratios change their sign."""
    ours = copy.deepcopy(kto.policy.state_dict())
    kto.policy.load_state_dict(kto.reference.model.state_dict())
    kto.reference.model.load_state_dict(ours)
    return kto


def positive() -> KTO:
    """With z0 above its clamp: otherwise every comparison would be 0 = 0."""
    made = method()
    if z0_by_hand(made, split(WORK)) == 0:
        swap(made)
    assert z0_by_hand(made, split(WORK)) > 0.1
    return made


@pytest.fixture(scope="module")
def kto() -> KTO:
    return positive()


def step(data: StepData, budget: int, rank: int = 0, world_size: int = 1) -> Step:
    costs = [data.cost(i) for i in range(len(data))]
    sampler = StepSampler(
        costs, units_per_step=len(data), tokens_per_microbatch=budget, shuffle=False, seed=0, rank=rank,
        world_size=world_size,
    )  # fmt: skip
    (plan,) = sampler
    return data[plan]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("budget", [1, 16, 10_000])
def test_z0_is_that_of_the_step_however_it_is_cut(kto, budget, layout):
    data = split(WORK, layout=layout)
    one = step(data, budget)
    assert len(one.micro_batches) == {1: 6, 16: 3 if layout == "packed" else 4, 10_000: 1}[budget]
    z0 = kto.statistics(one)["kl"]
    assert z0.item() == pytest.approx(z0_by_hand(kto, data), rel=1e-6)
    assert not z0.requires_grad


def test_z0_is_clamped_after_the_mean_not_before(kto):
    """With policy and reference exchanged the mean is negative, though single micro-batches are positive."""
    data = split(WORK)
    swapped = swap(positive())
    one = step(data, 1)
    assert swapped.statistics(one)["kl"].item() == 0
    parts = [swapped.statistics(Step((b,), one.counts))["kl"].item() for b in one.micro_batches]
    assert max(parts) > 0, "a clamp before the mean would show"


def test_fillers_count_neither_in_z0_nor_in_loss_and_metrics(kto):
    data = split(WORK[:5])
    ranks = [step(data, 1, rank, 2) for rank in range(2)]
    assert [b.dummy for r in ranks for b in r.micro_batches].count(True) == 1
    batches = [b for r in ranks for b in r.micro_batches]
    joined = Step(tuple(batches), ranks[0].counts)
    statistics = kto.statistics(joined)
    assert statistics["kl"].item() == pytest.approx(z0_by_hand(kto, data), rel=1e-6)
    whole = step(data, 10_000)
    expected = kto.loss_of(whole.micro_batches[0], whole, statistics, "val")
    expected_metrics = kto.compute_metrics("val")
    got = sum(kto.loss_of(b, joined, statistics, "val") for b in batches)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(kto.compute_metrics("val"), expected_metrics)


def test_one_prompt_only_gives_0_and_says_so(kto):
    data = split([unit([5, 6], [7, 2]), unit([5, 6], [8, 9, 2])])
    assert not any(u.mismatched for u in data.units)
    with pytest.warns(UserWarning, match="all prompts of the split are the same"):
        assert kto.statistics(step(data, 1000))["kl"].item() == 0


def test_no_warning_otherwise(kto):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kto.statistics(step(split(WORK), 16))


def test_mismatched_prompts_are_others_and_fit_into_the_context(kto):
    work = units([(30, [3]), (4, [34, 2]), (33, [5]), (2, [2])])
    data = split(work, max_length=38)
    borrowed = [mixed for own in data.units for mixed in own.mismatched]
    assert sorted(work.index(donor) for mixed in borrowed for donor in work if donor.responses == mixed.responses) == [
        0,
        1,
        2,
        3,
    ]
    for own, mixed in enumerate(borrowed):
        assert mixed.responses != work[own].responses
        assert len(mixed.prompt) + max(map(len, mixed.responses)) <= 38
        assert mixed.prompt[:1] == work[own].prompt[:1] and mixed.prompt[-1] == work[own].prompt[-1]
    assert any(len(mixed.prompt) < len(work[i].prompt) for i, mixed in enumerate(borrowed))


def test_gradient_of_the_loss_does_not_run_through_z0(kto):
    data = split(WORK)
    one = step(data, 10_000)
    statistics = kto.statistics(one)
    loss_of_step = kto.loss_of(one.micro_batches[0], one, statistics, "val")
    kto.compute_metrics("val")
    ours = torch.autograd.grad(loss_of_step, list(kto.policy.parameters()))
    fixed = {"kl": torch.tensor(statistics["kl"].item())}
    other = torch.autograd.grad(kto.loss_of(one.micro_batches[0], one, fixed, "val"), list(kto.policy.parameters()))
    kto.compute_metrics("val")
    for a, b in zip(ours, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_two_ranks_share_one_z0(kto, monkeypatch):
    data = split(WORK)
    got = on_ranks(lambda rank: kto.statistics(step(data, 1, rank, 2))["kl"].item(), 2, monkeypatch)
    assert got == pytest.approx([z0_by_hand(kto, data)] * 2, rel=1e-6)
