"""DOVE: joint pairs of two prompts each, and DPO's loss on them."""

import pytest
import torch
from attrs import evolve
from cases import Case
from tiny import batch_of, data_of, examples_of, plain_logps, unit, units

from upo.data.batch import Step
from upo.data.example import Example, Response
from upo.data.samplers import StepSampler
from upo.data.steps import StepData
from upo.data.views import PairedView
from upo.errors import UserError
from upo.methods.dove import DOVE, JointView, judgement
from upo.methods.dpo import DPO
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

CASES = {DOVE: Case(source="tiny.scored_alone", normaliser_cancels=False, defaults={"beta": 0.1})}

CONFIG = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
CONFIG |= {"intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.2}
SCORES = [3.0, 1.0, 2.0, 1.0, 3.0, 2.0]


def method(kind: type = DOVE) -> DPO:
    """A policy that differs from its reference."""
    made = kind(Policy(config=CONFIG, tokenizer="tiny.tokenizer", dtype="float64"), FrozenReference(), beta=0.3)
    torch.manual_seed(0)
    made.configure_model()
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def dove() -> DPO:
    return method()


def scored(scores=SCORES) -> list:
    """One response a prompt, of different lengths."""
    work = units([(3, [9]), (5, [1]), (2, [4]), (7, [2]), (4, [6]), (1, [1])])
    pairs = zip(work, scores, strict=False)
    return [evolve(u, example=u.example.with_responses((Response("r", score=s),))) for u, s in pairs]


def split(budget: int, layout: str = "packed", scores=SCORES) -> StepData:
    fields = {"tokens_per_microbatch": budget, "max_length": 64, "pad_id": 0, "rewards": (), "seed": 3}
    return data_of(scored(scores), JointView(), layout=layout, **fields)


def step(data: StepData, budget: int, rank: int = 0, world_size: int = 1) -> Step:
    (plan,) = StepSampler(
        [data.cost(i) for i in range(len(data))], units_per_step=len(data), tokens_per_microbatch=budget,
        shuffle=False, seed=0, rank=rank, world_size=world_size,
    )  # fmt: skip
    return data[plan]


def by_hand(dove: DPO, data: StepData) -> torch.Tensor:
    """-log sigmoid(beta (r_w - r_l)) of every joint pair, one sequence at a time."""

    def ratio(u):
        with torch.no_grad():
            reference = plain_logps(dove.reference.model, u.prompt, u.responses[0]).sum()
        return plain_logps(dove.policy, u.prompt, u.responses[0]).sum() - reference

    losses = []
    known = {tuple(u.prompt): score for u, score in zip(scored(), SCORES, strict=True)}
    for u in data.units:
        good, bad = u.groups
        assert known[tuple(good.prompt)] > known[tuple(bad.prompt)]
        losses.append(torch.log1p(torch.exp(-dove.beta * (ratio(good) - ratio(bad)))))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("budget", [1, 24, 10_000])
def test_loss_and_gradient_however_the_step_is_cut(dove, budget, layout):
    data = split(budget, layout)
    one = step(data, budget)
    assert (len(one.micro_batches) > 1) == (budget < 100) and one.counts["prompts"] == 6
    expected = by_hand(dove, data)
    gradients = torch.autograd.grad(expected, list(dove.policy.parameters()))
    dove.policy.zero_grad()
    total = 0.0
    for batch in one.micro_batches:
        loss = dove.loss_of(batch, one, {}, "train")
        loss.backward()
        total += loss.item()
    metrics = dove.compute_metrics("train")
    assert total == pytest.approx(expected.item(), rel=1e-8)
    assert metrics["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    for p, gradient in zip(dove.policy.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=2e-7)


def test_both_prompts_are_carried_the_better_one_first():
    low, high = unit([3, 4], [5, 6, 7], score=1.0), unit([8], [9, 10], score=2.0)
    batch = data_of([low, high], JointView()).batch([0])
    assert batch.responses.targets.tolist() == [9, 10, 5, 6, 7]
    assert batch.responses.lengths.tolist() == [2, 3], "each response has its own length"
    assert batch.responses.prompt_index.tolist() == [0, 1]
    assert batch.counts["prompts"] == 1 and batch.preferred.tolist() == [True, False]


def test_one_prompt_for_both_is_dpo(dove):
    """The same two responses, as a joint pair and as a pair of one prompt."""
    work = [unit([3, 4], [5, 6, 7], score=2.0), unit([3, 4], [9, 10], score=1.0)]
    joint = data_of(work, JointView()).batch([0])
    pair = batch_of([unit([3, 4], [5, 6, 7], [9, 10])], PairedView())
    dpo = method(DPO)
    values = [
        made.terms(batch, made.response_logps(batch.responses), {})["preference"].values
        for made, batch in ((dove, joint), (dpo, pair))
    ]
    torch.testing.assert_close(*values)
    assert values[0].shape == (1,) and abs(values[0].item() - 0.6931) > 1e-3


def test_margins_are_those_of_joint_pairs(dove):
    data = split(10_000)
    one = step(data, 10_000)
    (batch,) = one.micro_batches
    dove.loss_of(batch, one, {}, "val")
    metrics = dove.compute_metrics("val")
    reward = dove.reward(dove.response_logps(batch.responses)).detach()
    margins = reward[0::2] - reward[1::2]
    assert metrics["rewards/margins"].item() == pytest.approx(margins.mean().item(), rel=1e-5)
    assert metrics["rewards/accuracies"].item() == pytest.approx((margins > 0).double().mean().item())


def test_every_scored_response_is_a_unit_and_ranks_are_not_enough():
    responses = (Response("a", score=1.0), Response("b", desirable=True), Response("c", rank=0))
    views = examples_of(JointView(), Example("p", responses), 5)
    assert [[r.text for r in v.responses] for v in views] == [["a"], ["b"]]
    assert [judgement(r) for r in responses] == [1.0, 1.0, None]


def test_equal_scores_cannot_be_joined():
    with pytest.raises(UserError, match="different scores"):
        split(100, scores=[1.0] * 6)
