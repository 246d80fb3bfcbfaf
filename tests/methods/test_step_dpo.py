"""Step-DPO: which step of which pair is trained, and that the loss is DPO's with the prefix in the prompt."""

import pytest
import torch
from cases import Case
from losses import FIRST, SECOND, golden_pair, made
from tiny import data_of, examples_of, policy, tokenizer

from upo.data.example import Example, Response
from upo.data.report import DataReport
from upo.data.tokenize import Encoder
from upo.methods.dpo import DPO
from upo.methods.step_dpo import StepDPO, StepPairedView
from upo.models.reference import FrozenReference

CASES = {StepDPO: Case(normaliser_cancels=True, defaults={"beta": 0.4})}


def pair(chosen: str, rejected: str, wrong: tuple[int, ...] = (), prompt="Q:\n") -> Example:
    marks = {f"step_{i}": float(i not in wrong) for i in range(1, 1 + len(rejected.split("\n")))} if wrong else {}
    return Example(prompt, (Response(chosen, rank=0), Response(rejected, rank=1, attributes=marks)))


def step(*args, **kwargs) -> tuple[object, list[str], list[bool]] | None:
    found = examples_of(StepPairedView(), pair(*args, **kwargs), 5)
    if not found:
        return None
    return found[0].prompt, [r.text for r in found[0].responses], [r.complete for r in found[0].responses]


def test_shared_steps_go_into_the_prompt_and_later_ones_are_cut():
    assert step("a\nb\nc\nd", "a\nb\nx\ny") == ("Q:\na\nb\n", ["c\n", "x\n"], [False, False])
    assert step("a\nb", "a\nx\ny") == ("Q:\na\n", ["b", "x\n"], [True, False])
    assert step("a", "x") == ("Q:\n", ["a", "x"], [True, True])


def test_a_conversation_ends_with_what_the_assistant_has_said():
    ask = ({"role": "user", "content": "Q"},)
    assert step("a\nb", "a\nx", prompt=ask)[0] == (*ask, {"role": "assistant", "content": "a\n"})
    assert step("a", "x", prompt=ask)[0] == ask


def test_the_first_difference_must_be_the_first_wrong_step():
    assert step("a\nb\nc", "a\nx\ny", wrong=(2, 3)) is not None
    assert step("a\nb\nc", "a\nx\ny", wrong=(3,)) is None, "step 2 is written in other words, and right"
    assert step("a\nb\nc", "a\nx\ny", wrong=(1,)) is None, "the shared step is wrong"


def test_solutions_that_only_go_on_give_nothing():
    assert step("a\nb", "a") is None and step("a", "a\nb") is None


def test_an_unfinished_last_thought_is_closed_by_its_line_end():
    thoughts = (Response("a\nb", rank=0, complete=False), Response("a\nc", rank=1, complete=False))
    (view,) = examples_of(StepPairedView(), Example("Q:\n", thoughts), 5)
    assert [(r.text, r.complete) for r in view.responses] == [("b\n", False), ("c\n", False)]


def test_only_the_last_step_has_an_eos():
    encoder = Encoder(tokenizer())
    (view,) = examples_of(StepPairedView(), pair("a\nb", "a\nx\ny"), 5)
    (unit,) = encoder.encode([view], DataReport())
    assert [encoder.eos in ids for ids in unit.responses] == [True, False]
    assert encoder.tokenizer.decode(unit.responses[1]) == "x\n"


@pytest.mark.parametrize("fixture", [FIRST, SECOND])
def test_golden_values(fixture):
    """DPO's loss: log(1 + exp(-0.4 * 7)) at the paper's beta, and the fixtures' value at theirs."""
    assert made(StepDPO).loss(*golden_pair(fixture)).item() == pytest.approx(0.0590331, abs=5e-7)
    assert made(StepDPO, beta=0.1).loss(*golden_pair(fixture)).item() == pytest.approx(0.403186, abs=5e-7)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_equals_dpo_with_the_prefix_written_into_the_prompt(layout):
    """Loss and gradient, of a policy that differs from its reference."""
    whole = pair("One is one.\nTwo follows.\nDone.", "One is one.\nFive follows it.\nDone.", wrong=(2,))
    sliced = Example("Q:\nOne is one.\n", tuple(Response(t, rank=i, complete=False) for i, t in enumerate(
        ("Two follows.\n", "Five follows it.\n"))))  # fmt: skip
    results = []
    for kind, example in ((StepDPO, whole), (DPO, sliced)):
        method = kind(policy(), FrozenReference(), beta=0.4)
        method.reference.model = policy(seed=1)
        units = Encoder(method.policy.tokenizer).encode(examples_of(method.view, example, 5), DataReport())
        data = data_of(units, method.view, layout=layout, tokens_per_microbatch=64, max_length=128, pad_id=0,
                        rewards=(), seed=0)  # fmt: skip
        batch = data.batch([0])
        logps = method.response_logps(batch.responses)
        loss = method.loss(logps[0::2], logps[1::2]).sum()
        results.append((loss, torch.autograd.grad(loss, method.policy.model.get_input_embeddings().weight)[0]))
    (loss, gradient), (expected, expected_gradient) = results
    assert torch.equal(loss, expected) and torch.equal(gradient, expected_gradient) and gradient.any()
