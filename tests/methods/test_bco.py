"""BCO: the loss, delta over the steps so far, and the weights of undesirable prompts (UDM)."""

import math

import pytest
import torch
from attrs import evolve
from cases import Case
from losses import assert_gradcheck, draws, gradients, minus_log_sigmoid
from tiny import data_of, plain_logps, units

from upo.data.samplers import StepSampler
from upo.data.steps import StepData
from upo.data.views import UnpairedView
from upo.errors import UserError
from upo.methods.bco import BCO, bco_loss, fit_classifier, running_delta, udm_weights
from upo.methods.dpo import dpo_loss
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

CASES = {BCO: Case(metrics={"delta"}, normaliser_cancels=False, defaults={"beta": 0.01, "match_prompts": False})}

BETA = 0.1
RATIOS = draws(30)
GOOD = torch.arange(30) % 3 == 0


def loss(ratio, desirable, delta=0.0, weights=None):
    labels = torch.as_tensor(desirable)
    return bco_loss(ratio, labels, torch.tensor(delta, dtype=ratio.dtype), weights, beta=BETA)


@pytest.mark.parametrize(("logratios", "golden"), [((2.0, -5.0), 1.072216), ((-3.0, -10.0), 1.167617)])
def test_golden_values(logratios, golden):
    """delta = 0, chosen and rejected added up."""
    value = loss(torch.tensor(logratios, dtype=torch.float64), [True, False]).sum()
    assert value.item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """R - delta = 1.2 - .2 = 1: .3132617; undesirable 1.3132617, times its weight."""
    value = loss(torch.tensor([12.0, 12.0]), [True, False], 0.2, torch.tensor([5.0, 2.0]))
    assert value.tolist() == pytest.approx([0.3132617, 2.6265234])


@pytest.mark.parametrize("delta", [0.0, 0.7, -3.0])
def test_against_a_slow_reference(delta):
    weights = torch.linspace(0.5, 10, 30, dtype=torch.float64)
    rows = zip(RATIOS.tolist(), GOOD.tolist(), weights.tolist(), strict=True)
    expected = [
        minus_log_sigmoid(BETA * r - delta) if good else w * minus_log_sigmoid(delta - BETA * r) for r, good, w in rows
    ]
    assert loss(RATIOS, GOOD, delta, weights).tolist() == pytest.approx(expected, rel=1e-10)


def test_an_upper_bound_of_dpo_closest_at_the_midpoint():
    w, r = draws(2, 30)
    bound = dpo_loss(w, r, beta=BETA)
    gaps = []
    for shift in (-2.0, -0.5, 0.0, 0.5, 2.0):
        delta = BETA * (w + r) / 2 + shift
        both = -torch.nn.functional.logsigmoid(BETA * w - delta) - torch.nn.functional.logsigmoid(delta - BETA * r)
        one = [loss(torch.stack([w[i], r[i]]), [True, False], delta[i].item()).sum() for i in range(30)]
        torch.testing.assert_close(torch.stack(one), both)
        gaps.append(both - bound)
        assert (gaps[-1] > 0).all()
    assert all((gaps[2] <= gap).all() for gap in gaps)


def test_gradients_signs_and_finite_far_out():
    assert_gradcheck(lambda x: loss(x, GOOD[:9], 0.3), RATIOS[:9])
    (gradient,) = gradients(lambda x: loss(x, GOOD, 0.3), RATIOS)
    assert ((gradient < 0) == GOOD).all()
    (start,) = gradients(lambda x: loss(x, [True, False]), torch.zeros(2))
    assert start.tolist() == pytest.approx([-BETA / 2, BETA / 2])
    for far in (1e4, -1e4, -1e-9):
        value = loss(torch.tensor([far, far]), [True, False])
        assert value.isfinite().all()
        assert all(g.isfinite().all() for g in gradients(lambda x: loss(x, [True, False]), torch.tensor([far, far])))


def test_delta_is_the_midpoint_of_both_means_not_the_mean_of_all():
    """Three desirable rewards of mean 4 and one undesirable of -2: 1, where the mean of all four were 2.5."""
    assert running_delta(torch.tensor([[12.0, 3.0], [-2.0, 1.0]])).item() == 1
    assert running_delta(torch.tensor([[12.0, 3.0], [0.0, 0.0]])).item() == 4
    assert running_delta(torch.zeros(2, 2)).item() == 0


def test_weights_are_clamped_odds():
    logits = torch.tensor([-50.0, -0.2, 0.0, 1.5, 400.0])
    p = torch.sigmoid(logits.double())
    expected = (p / (1 - p + 1e-8)).clamp(0.5, 10)
    torch.testing.assert_close(udm_weights(logits).double(), expected, rtol=1e-5, atol=1e-6)
    assert udm_weights(logits)[[0, 2, 4]].tolist() == pytest.approx([0.5, 1.0, 10.0])


def test_the_classifier_finds_a_density_ratio_free_of_the_classes_sizes():
    """Gaussians at +-.5 with 2000 and 500 draws: the log density ratio is x, with no trace of log 4."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([0.5 + torch.randn(2000, 1, generator=generator), -0.5 + torch.randn(500, 1, generator=generator)])
    slope, intercept = fit_classifier(x, torch.arange(2500) < 2000).tolist()
    assert slope == pytest.approx(1, abs=0.15) and intercept == pytest.approx(0, abs=0.15)


# ---- delta over steps, the classifier of a run ---------------------------------------------------------------------

CONFIG = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG |= {"intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.2}
LABELS = [True, False, True, True, True, False, True, False, True, True]


def method(**options) -> BCO:
    """A policy that differs from its reference."""
    made = BCO(Policy(config=CONFIG, tokenizer="tiny.tokenizer", dtype="float64"), FrozenReference(), **options)
    torch.manual_seed(0)
    made.configure_model()
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return made


def data(budget: int = 10_000, labels=LABELS) -> StepData:
    work, label = [], iter(labels)
    for u in units([(3, [9, 2]), (5, [1, 3]), (2, [4, 4]), (7, [2, 6]), (4, [6, 3])]):
        responses = tuple(evolve(r, desirable=next(label)) for r in u.example.responses)
        work.append(evolve(u, example=u.example.with_responses(responses)))
    fields = {"layout": "packed", "tokens_per_microbatch": budget, "max_length": 64, "pad_id": 0, "rewards": ()}
    return data_of(work, UnpairedView(), **fields, seed=0)


def steps(split: StepData, budget: int, units_per_step: int = 5) -> list:
    costs = [split.cost(i) for i in range(len(split))]
    options = {"units_per_step": units_per_step, "tokens_per_microbatch": budget}
    return [split[plan] for plan in StepSampler(costs, **options, shuffle=False, seed=0)]


@torch.no_grad()
def slow_delta(bco: BCO, split: StepData) -> float:
    found: dict[bool, list[float]] = {True: [], False: []}
    for u in split.units:
        for response, annotated in zip(u.responses, u.example.responses, strict=True):
            ours, theirs = (plain_logps(m, u.prompt, response).sum() for m in (bco.policy, bco.reference.model))
            found[annotated.desirable].append(bco.beta * float(ours - theirs))
    return (sum(found[True]) / len(found[True]) + sum(found[False]) / len(found[False])) / 2


@pytest.mark.parametrize("budget", [1, 24, 10_000])
def test_delta_is_that_of_the_whole_step_and_of_all_steps_so_far(budget):
    bco, split = method(beta=0.5), data(budget)
    expected = slow_delta(bco, split)
    assert abs(expected) > 0.1
    (whole,) = steps(split, budget)
    assert bco.statistics(whole)["delta"].item() == pytest.approx(expected, rel=1e-6)
    other = method(beta=0.5)
    for one in steps(split, budget, 2):
        delta = other.statistics(one)["delta"].item()
    assert delta == pytest.approx(expected, rel=1e-6)


def test_delta_is_saved_and_rests_in_validation():
    bco, (whole,) = method(beta=0.5), steps(data(), 10_000)
    delta = bco.statistics(whole)["delta"]
    bco.eval()
    assert bco.statistics(steps(data(), 10_000, 1)[0])["delta"] == delta
    fresh = method(beta=0.5)
    fresh.load_state_dict(bco.state_dict())
    assert fresh.eval().statistics(whole)["delta"] == delta


def test_prompts_of_one_class_alone_are_weighted():
    """The last prompt has no undesirable response, the second none but undesirable ones."""
    bco = method(match_prompts=True)
    labels = [True, False, False, False, True, False, True, False, True, True]
    split = data(labels=labels)
    bco.classifier.copy_(bco.fit_prompts(split))
    (whole,) = steps(split, 10_000)
    (batch,) = whole.micro_batches
    logps = bco.response_logps(batch.responses, bco.needs)
    hidden = bco.reference.outputs(batch.responses, ("prompt_hidden",))["prompt_hidden"].float()
    logits = hidden @ bco.classifier[:-1] + bco.classifier[-1]
    assert logits.argmax() == 4 and logits.argmin() == 1
    values = bco.loss(logps, batch.preferred, {"delta": torch.tensor(0.0)})
    plain = loss(logps.logratio * bco.beta / BETA, batch.preferred)
    ratio = values / plain
    assert ratio[batch.preferred].tolist() == pytest.approx([1.0] * int(batch.preferred.sum()))
    expected = udm_weights(logits)[logps.prompt_index][~batch.preferred].tolist()
    assert ratio[~batch.preferred].tolist() == pytest.approx(expected, rel=1e-5)
    assert math.isclose(min(expected), udm_weights(logits)[1].item())


def test_one_class_alone_cannot_be_matched():
    bco = method(match_prompts=True)
    with pytest.raises(UserError, match="match_prompts"):
        bco.fit_prompts(data(labels=[True] * 10))
