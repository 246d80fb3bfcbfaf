"""SPO's preference degree: degraded copies, their classification, and DPO beside it."""

import math

import pytest
import torch
from cases import Case
from losses import assert_gradcheck
from tiny import data_of, examples_of, tokenizer

from upo.data.batch import Step
from upo.data.codec import TextCodec
from upo.data.example import Example, Response
from upo.data.keyphrases import key_phrases, without_key_phrases
from upo.data.report import DataReport
from upo.data.samplers import StepSampler
from upo.data.tokenize import Limits
from upo.data.views import PairedView
from upo.methods.dpo import DPO
from upo.methods.spo_degree import DegreeView, SPODegree, degree_loss
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

CASES = {
    SPODegree: Case(
        heads={"degree_head"},
        metrics={"degree/accuracies", "loss/degree", "loss/preference"},
        normaliser_cancels=True,
        log_odds_at=None,
        defaults={"beta": 0.1, "gamma": 0.1},
        not_in_loss={"head_lr"},
    ),
}

CONFIG = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG |= {"intermediate_size": 48, "max_position_embeddings": 256, "initializer_range": 0.2}
TEXT = "The white cat sleeps on the warm window sill, and the dog waits."


def pair(chosen: str = TEXT, rejected: str = "Cats are fish.") -> Example:
    return Example("Can cats swim?", (Response(chosen, rank=0), Response(rejected, rank=1)))


def method(kind: type = SPODegree, **options):
    made = kind(Policy(config=CONFIG, tokenizer="tiny.tokenizer", dtype="float64"), FrozenReference(), **options)
    torch.manual_seed(0)
    made.configure_model()
    if kind is SPODegree:
        made.degree_head.double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.3 * parameter.std() * noise
    return made


def steps(budget: int, view: PairedView = DegreeView()) -> Step:
    examples = [pair(), pair(TEXT.replace("dog", "old grey dog"), "No."), pair("Some swim well.", TEXT)]
    drafts = [draft for e in examples for draft in view.drafts(e, 5)]
    units = TextCodec(tokenizer()).encode(drafts, Limits(256, 256, [], None), DataReport())
    data = data_of(units, view, tokens_per_microbatch=budget)
    costs = [data.cost(i) for i in range(len(data))]
    (plan,) = StepSampler(costs, units_per_step=3, tokens_per_microbatch=budget, shuffle=False, seed=0)
    return data[plan]


# ---- copies --------------------------------------------------------------------------------------------------------


def test_key_phrases_by_hand():
    """white cat sleeps: 3 words of degree 3 each; warm window sill likewise; dog waits: 2 of 2."""
    found = [TEXT[start:end] for start, end in key_phrases(TEXT)]
    assert found == ["white cat sleeps", "warm window sill", "dog waits"]
    assert key_phrases("and of the") == [] == key_phrases("")


def test_shares_of_the_key_phrases_go_the_most_important_first():
    assert without_key_phrases(TEXT, 1 / 3) == "The on the warm window sill, and the dog waits."
    assert without_key_phrases(TEXT, 0.4) == "The on the , and the dog waits."
    assert without_key_phrases(TEXT, 1.0) == "The on the , and the ."
    assert without_key_phrases(TEXT, 0.0) == TEXT


def test_copies_are_distinct_never_empty_and_know_their_degree():
    (draft,) = DegreeView().drafts(pair(), 5)
    responses = draft.example.responses
    texts = [r.text for r in responses]
    assert texts[:2] == [TEXT, "Cats are fish."] and [r.rank for r in responses[:2]] == [0, 1]
    assert len(set(texts)) == len(texts) and all(texts)
    assert draft.columns["shares"] == [1 / 4, 1 / 3, 1 / 4, 1 / 4, 1 / 4, 1 / 3, 1 / 3]
    assert draft.columns["degrees"] == [0, 0, 3, 2, 1, 3, 1]
    (bare,) = examples_of(DegreeView(), pair("Paris", "Rome"), 5)
    assert len(bare.responses) == 2, "nothing is left without the only phrase"
    assert examples_of(DegreeView(), Example("p", (Response("a"), Response("b"))), 5) == []


def test_rows_of_pairs_and_copies():
    one = steps(10_000)
    (batch,) = one.micro_batches
    degrees, originals = batch["degrees"], batch["originals"]
    assert originals.sum() == 6 and batch.preferred[originals].tolist() == [True, False] * 3
    assert not batch.preferred[~originals].any()
    assert (degrees[originals] == 0).all() and (degrees[~originals] > 0).all()
    assert one.counts["responses"] == len(degrees) == batch.counts["responses"]
    assert one.counts["prompts"] == 3 and batch["shares"].sum().item() == pytest.approx(6), "each response weighs 1"


# ---- the loss ------------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand_and_against_a_slow_reference():
    assert degree_loss(torch.zeros(2, 4), torch.tensor([0, 3])).tolist() == pytest.approx([math.log(4)] * 2)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    labels = [0, 1, 2, 3, 1, 0]
    expected = [math.log(sum(map(math.exp, row))) - row[k] for row, k in zip(logits.tolist(), labels, strict=True)]
    assert degree_loss(logits, torch.tensor(labels)).tolist() == pytest.approx(expected)
    assert_gradcheck(lambda x: degree_loss(x, torch.tensor(labels)), logits)
    far = torch.tensor([[1e4, -1e4, 0.0, 0.0]], requires_grad=True)
    value = degree_loss(far, torch.tensor([1]))
    assert value.item() == pytest.approx(2e4) and torch.autograd.grad(value.sum(), far)[0].isfinite().all()


def gradients(made, one: Step) -> tuple[float, dict[str, torch.Tensor]]:
    made.zero_grad()
    total = 0.0
    for batch in one.micro_batches:
        loss = made.loss_of(batch, one, {}, "train")
        loss.backward()
        total += loss.item()
    made.compute_metrics("train")
    return total, {name: p.grad.clone() for name, p in made.named_parameters()}


def test_gamma_0_is_dpo_and_leaves_the_head_alone():
    loss, found = gradients(method(gamma=0.0), steps(10_000))
    expected, plain = gradients(method(DPO), steps(10_000, PairedView()))
    assert loss == pytest.approx(expected, rel=1e-9)
    assert all((found.pop(name) == 0).all() for name in ("degree_head.weight", "degree_head.bias"))
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-7)


def test_the_loss_however_the_step_is_cut_and_what_it_is_made_of():
    made = method(gamma=0.4)
    (loss, whole), (other, cut) = (gradients(made, steps(budget)) for budget in (10_000, 1))
    assert len(steps(1).micro_batches) == 3 and other == pytest.approx(loss, rel=1e-8)
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=2e-7)
    assert whole["degree_head.weight"].abs().max() > 1e-3
    (batch,) = steps(10_000).micro_batches
    logps = made.response_logps(batch.responses, made.needs)
    terms = made.terms(batch, logps, {})
    ratio = logps.logratio[batch["originals"]]
    preference = -torch.nn.functional.logsigmoid(0.1 * (ratio[0::2] - ratio[1::2])).mean()
    ce, of = degree_loss(made.degree_logits(logps), batch["degrees"]).tolist(), logps.prompt_index.tolist()
    both = [0.0] * 3
    for start in (of.index(b) for b in range(3)):
        rows = list(range(start, start + of.count(of[start])))
        copies = batch["degrees"][rows[2:]].tolist()  # 3, 2, 1 of the chosen one, then those of the rejected one
        turn = next((i for i in range(1, len(copies)) if copies[i] >= copies[i - 1]), len(copies))
        for mine in ([rows[0], *rows[2 : 2 + turn]], [rows[1], *rows[2 + turn :]]):
            both[of[start]] += sum(ce[i] for i in mine) / len(mine)
    assert terms["degree"].values.tolist() == pytest.approx(both, rel=1e-6)
    assert loss == pytest.approx(preference.item() + 0.4 * sum(both) / 3, rel=1e-6)


def test_the_head_sees_each_responses_last_state():
    """The state before its last token, as Hugging Face's model has it for this sequence alone."""
    made, (batch,) = method(), steps(10_000).micro_batches
    logits = made.degree_logits(made.response_logps(batch.responses, made.needs))
    r, start = batch.responses, 0
    for n, length in enumerate(r.lengths.tolist()):
        b = int(r.prompt_index[n])
        prompt = r.input_ids[(r.prompt_segment_ids == b) & (r.response_segment_ids == -1)]
        body = r.targets[start : start + length - 1]
        start += length
        hidden = made.policy.model.model(input_ids=torch.cat([prompt, body])[None], use_cache=False).last_hidden_state
        torch.testing.assert_close(logits[n], made.degree_head(hidden[0, -1]), rtol=1e-5, atol=1e-6)
