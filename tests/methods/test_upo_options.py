"""UPO's open choices and its controls: what each does, and that none depends on how a step is cut."""

import math

import lightning.pytorch as pl
import pytest
import torch
from attrs import evolve
from tiny import data_of, units
from training import fit, make, pairs_file, resumed_equals_uninterrupted

import upo.methods.kto
import upo.methods.upo
from upo.data.batch import Step
from upo.data.samplers import StepSampler
from upo.data.views import PairedView
from upo.functional.value_losses import Expectile
from upo.methods.common.value_head import ValueHead, ValueHeads
from upo.methods.ipo import ipo_loss
from upo.methods.kto import KTOView
from upo.methods.upo import UPO, UPOIPO, AuxiliaryRewards, advantage_weights
from upo.methods.upo_controls import AuxiliaryOnly, UPOShuffled
from upo.models.policy import Policy
from upo.models.reference import FrozenReference
from upo.rewards.length import Words

CONFIG = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG |= {"intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.2}
COLUMNS = {"safety": 0.7, "reading": 0.3}
LABELS = [True, False, True, True, True, False, True, False, True, True]
OPTIONS = {
    "normalized": (UPO, {"normalize_weights": True}),
    "all": (UPO, {"normalize_weights": True, "weight_clip": 8.0, "value_per_reward": True, "value_at": "mean"}),
    "ipo": (UPOIPO, {"value_per_reward": True}),
    "shuffled": (UPOShuffled, {}),
    "auxiliary": (AuxiliaryOnly, {"value_at": "mean", "weight_clip": 8.0}),
}


def work() -> list:
    """Five pairs with rewards and labels, ten responses that differ in length."""
    made, labels = [], iter(LABELS)
    generator = torch.Generator().manual_seed(5)
    for unit in units([(3, [9, 2]), (5, [1, 3]), (2, [4, 4]), (7, [2, 6]), (4, [6, 3])]):
        responses = tuple(
            evolve(r, desirable=next(labels), rewards={n: torch.rand((), generator=generator).item() for n in COLUMNS})
            for r in unit.example.responses
        )
        made.append(evolve(unit, example=unit.example.with_responses(responses)))
    return made


def method(kind: type[AuxiliaryRewards] = UPO, **options) -> AuxiliaryRewards:
    """A method behind its warm-up, whose policy differs from its reference."""
    options = {"reward_weights": COLUMNS, "value_dropout": 0.0, "value_warmup_steps": 0, "lam": 3.0} | options
    made = kind(Policy(config=CONFIG, tokenizer="tiny.tokenizer", dtype="float64"), FrozenReference(), **options)
    torch.manual_seed(0)
    made.configure_model()
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return made


def step(made, budget: int = 10_000, rank: int = 0, world_size: int = 1, layout: str = "packed") -> Step:
    kind = made.view if made.view == PairedView() else KTOView()
    data = data_of(
        work(), kind, layout=layout, tokens_per_microbatch=budget, max_length=64, pad_id=0,
        rewards=tuple(COLUMNS), seed=3,
    )  # fmt: skip
    (plan,) = StepSampler(
        [data.cost(i) for i in range(len(data))], units_per_step=len(data), tokens_per_microbatch=budget,
        shuffle=True, seed=1, rank=rank, world_size=world_size,
    )  # fmt: skip
    return data[plan]


def run(made, whole: Step) -> torch.Tensor:
    """The loss and its gradient by every parameter, from the micro-batches of a step."""
    made.zero_grad()
    statistics, total = made.statistics(whole), 0.0
    for batch in whole.micro_batches:
        loss = made.loss_of(batch, whole, statistics, "train")
        loss.backward()
        total += loss.item()
    made.compute_metrics("train")
    return torch.cat([torch.tensor([total]), *(p.grad.flatten() for p in made.parameters())]).double()


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """The value head is float32: another order of sums moves gradients by up to 3e-6 (no AVX2); thrice that."""
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=2e-5)


@pytest.fixture(scope="module")
def methods() -> dict:
    return {name: method(kind, **options) for name, (kind, options) in OPTIONS.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_cut_of_a_step_and_the_layout_do_not_matter(name, methods):
    made = methods[name]
    whole = run(made, step(made))
    assert whole.isfinite().all() and whole[1:].abs().max() > 1e-3
    for budget, layout in ((24, "packed"), (40, "padded")):
        cut = step(made, budget, layout=layout)
        assert len(cut.micro_batches) > 1
        close(run(made, cut), whole)


@pytest.mark.parametrize("name", OPTIONS)
def test_two_ranks_add_up_to_one(name, methods, monkeypatch):
    """Each rank's sums are recorded, added and handed to both; five micro-batches and a dummy."""
    made = methods[name]
    shares = [step(made, 1, rank, 2) for rank in range(2)]
    assert [b.dummy for s in shares for b in s.micro_batches].count(True) == 1
    sent = []
    for share in shares:
        mine: list[torch.Tensor] = []
        record = lambda x, mine=mine: mine.append(x.clone()) or x  # noqa: E731
        for module in (upo.methods.upo, upo.methods.kto):
            monkeypatch.setattr(module, "sum_over_ranks", record)
        made.statistics(share)
        sent.append(mine)
    parts = []
    for share in shares:
        sums = iter([a + b for a, b in zip(*sent, strict=True)])
        for module in (upo.methods.upo, upo.methods.kto):
            monkeypatch.setattr(module, "sum_over_ranks", lambda x, sums=sums: next(sums))
        parts.append(run(made, share))
    monkeypatch.undo()
    close(parts[0] + parts[1], run(made, step(made)))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("budget", [1, 24, 10_000])
def test_places_number_the_responses_of_the_global_step(budget, world_size):
    """Each response has the same place in every cut, and each place one response."""
    made = method()
    by_place = {}
    for rank in range(world_size):
        for batch in step(made, budget, rank, world_size).micro_batches:
            if not batch.dummy:
                for place, rewards in zip(batch.global_index.tolist(), batch.responses.rewards.tolist(), strict=True):
                    assert place not in by_place
                    by_place[place] = rewards
    whole = step(made).micro_batches[0]
    assert sorted(by_place) == list(range(10))
    assert [by_place[i] for i in whole.global_index.tolist()] == whole.responses.rewards.tolist()
    assert whole.global_index.tolist() != list(range(10)), "a micro-batch sorts its units, a step does not"


# ---- weights -------------------------------------------------------------------------------------------------------


def weights_of(made, whole: Step | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights that the auxiliary term uses and exp(lambda (R - V)), of the responses of one micro-batch."""
    whole = whole or step(made)
    batch = whole.micro_batches[0]
    logps = made.response_logps(batch.responses, made.needs)
    term = made.terms(batch, logps, made.statistics(whole))["auxiliary"].values
    plain = advantage_weights(made.objective(logps), made.value(logps), lam=made.lam)
    return (-term / logps.mean).detach().float(), plain.detach()


def test_clipped_by_hand():
    objective, value = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.5, 0.5, 0.5])
    weights = advantage_weights(objective, value, lam=2.0, clip=1.5)
    assert weights.tolist() == pytest.approx([1.5, 1.0, math.exp(-1)])
    assert advantage_weights(objective, value, lam=2.0, clip=0.1).tolist() == pytest.approx([0.1] * 3)


def test_clipped_weights_reach_the_loss_and_the_metrics():
    made = method(weight_clip=8.0)
    used, plain = weights_of(made)
    assert plain.max() > 8 > plain.min()
    torch.testing.assert_close(used, plain.clamp(max=8))
    run(made, whole := step(made))
    made.loss_of(whole.micro_batches[0], whole, made.statistics(whole), "train")
    assert made.compute_metrics("train")["weights/max"].item() == pytest.approx(8)


@pytest.mark.parametrize("clip", [None, 8.0])
def test_normalized_weights_have_mean_1_over_the_step(clip):
    used, plain = weights_of(method(normalize_weights=True, weight_clip=clip))
    plain = plain.clamp(max=clip or math.inf)
    torch.testing.assert_close(used, plain / plain.mean())
    assert used.mean().item() == pytest.approx(1, abs=1e-6)


def test_normalized_weights_do_not_change_with_a_constant_in_r():
    made = method(normalize_weights=True)
    before, plain = weights_of(made)
    whole = step(made)
    (batch,) = whole.micro_batches
    batch = evolve(batch, responses=evolve(batch.responses, rewards=batch.responses.rewards + 1.0))
    after, larger = weights_of(made, Step((batch,), whole.counts))
    assert (larger / plain).min() > 10
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


def test_normalized_weights_survive_rewards_whose_exponential_is_infinite():
    made = method(normalize_weights=True)
    whole = step(made)
    (batch,) = whole.micro_batches
    batch = evolve(batch, responses=evolve(batch.responses, rewards=1e4 * batch.responses.rewards))
    used, plain = weights_of(made, Step((batch,), whole.counts))
    assert plain.max() > 1e30 and plain.isfinite().all() and used.isfinite().all()
    assert used.max().item() == pytest.approx(10), "one response owns the term"


def test_no_extra_forward_pass_without_need():
    for options, kind, warm in (({}, UPO, 0), ({"normalize_weights": True}, UPO, 5), ({}, UPOShuffled, 5)):
        made = method(kind, value_warmup_steps=warm, **options)
        assert "log_weights" not in made.statistics(step(made))
    assert "log_weights" in method(UPOShuffled).statistics(step(method()))


# ---- V -------------------------------------------------------------------------------------------------------------


def heads_alike(made: AuxiliaryRewards, other: AuxiliaryRewards) -> None:
    for i, head in enumerate(made.value_head.heads):
        torch.manual_seed(i)
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    other.value_head.load_state_dict(made.value_head.heads[0].state_dict())


def value_terms(made) -> tuple:
    (batch,) = step(made).micro_batches
    logps = made.response_logps(batch.responses, made.needs)
    return made.terms(batch, logps, made.statistics(step(made))), logps


def test_a_head_for_each_reward_and_their_weighted_sum():
    weights = {"safety": 0.7, "reading": -0.3}
    made = method(value_per_reward=True, reward_weights=weights, value_loss=Expectile(0.8))
    assert isinstance(made.value_head, ValueHeads) and len(made.value_head.heads) == 2
    terms, logps = value_terms(made)
    first, second = (h(logps.outputs["prompt_hidden"])[logps.prompt_index] for h in made.value_head.heads)
    torch.testing.assert_close(made.value(logps), 0.7 * first - 0.3 * second)
    safety, reading = logps.rewards.unbind(1)
    # little reading is what R wants: the better side of V_2 lies below it
    fitted = (Expectile(0.8)(safety - first) + Expectile(0.8)(second - reading)) / 2
    torch.testing.assert_close(terms["value"].values, fitted)


def test_one_reward_of_weight_1_needs_no_head_of_its_own():
    one = {"reward_weights": {"safety": 1.0}}
    own, shared = method(value_per_reward=True, **one), method(**one)
    assert isinstance(shared.value_head, ValueHead)
    heads_alike(own, shared)
    close(run(own, safety_only(own)), run(shared, safety_only(shared)))


def safety_only(made) -> Step:
    whole = step(made)
    (batch,) = whole.micro_batches
    return Step(
        (evolve(batch, responses=evolve(batch.responses, rewards=batch.responses.rewards[:, :1])),), whole.counts
    )


def test_the_mean_of_prompt_states_is_that_of_the_prompt_alone():
    """Through Hugging Face, one prompt at a time; whatever the responses are and in both layouts."""
    made = method(value_at="mean")
    for layout in ("packed", "padded"):
        (batch,) = step(made, layout=layout).micro_batches
        means = made.policy(batch.responses, made.needs.policy)["prompt_mean"]
        for unit, mean in zip(work(), means, strict=True):
            alone = made.policy.model.base_model(input_ids=torch.tensor([unit.prompt]), use_cache=False)
            torch.testing.assert_close(mean, alone.last_hidden_state[0].mean(0), atol=1e-10, rtol=0)
    _, logps = value_terms(made)
    expected = made.value_head(logps.outputs["prompt_mean"])[logps.prompt_index]
    torch.testing.assert_close(made.value(logps), expected)


def test_prompt_means_in_half_precision_are_summed_in_full():
    (batch,) = step(method()).micro_batches
    states = torch.ones(batch.responses.input_ids.numel(), 4, dtype=torch.bfloat16)
    means = batch.responses.prompt_means(states)
    assert means.dtype == torch.float32 and (means == 1).all()


def test_upoipo_is_ipo_and_the_same_auxiliary_term():
    made, upo_ = method(UPOIPO, tau=0.2), method()
    terms, logps = value_terms(made)
    torch.testing.assert_close(
        terms["preference"].values, ipo_loss(logps[0::2].logratio, logps[1::2].logratio, tau=0.2)
    )
    torch.testing.assert_close(terms["auxiliary"].values, value_terms(upo_)[0]["auxiliary"].values)


# ---- a run ---------------------------------------------------------------------------------------------------------


class Shuffled(UPOShuffled):
    """With the options of a run that is killed and continued."""

    def __init__(self, *args, **kwargs):
        options = {"reward_weights": {"length": 0.05}, "value_warmup_steps": 1}
        super().__init__(*args, **options, normalize_weights=True, value_per_reward=True, **kwargs)


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    data = {"rewards": {"length": Words()}, "rewards_cache": str(tmp_path / "cache")}
    resumed_equals_uninterrupted(Shuffled, pl.Callback, tmp_path, pairs=pairs_file(tmp_path), **data)


def test_validation_of_normalized_weights_needs_no_training(tmp_path):
    made = make(UPO, reward_weights={"length": 0.05}, normalize_weights=True, value_warmup_steps=0)
    options = {"rewards": {"length": Words()}, "rewards_cache": str(tmp_path / "cache"), "validation": 2}
    done = fit(made, tmp_path, steps=2, **options)
    (values,) = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False).validate(
        done.method, done.data, verbose=False
    )
    assert math.isfinite(values["val/loss/auxiliary"])
