"""Which columns of a usual record are read, which cost it, and what is said of the others."""

import json
from pathlib import Path
from typing import Any

import pytest
from families import tokenizer

from upo.data import sources
from upo.data.annotate import annotate
from upo.data.example import Example, Response, as_text
from upo.data.report import DataReport, SourceReport
from upo.data.rewards import Reward
from upo.data.row import Row
from upo.data.source import Source, usable_part
from upo.data.tokenize import Encoder
from upo.errors import UserError
from upo.rollout.preference_set import read_prompts, record

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
TOOL = {"type": "function", "function": {"name": "clock", "description": "Time", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}


def user(text: str, **further: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **further}


def read(name: str, *records: dict[str, Any], **options: Any) -> tuple[list[Example], SourceReport]:
    report = SourceReport()
    made = getattr(sources, name)([Row(r, f"x:{i}") for i, r in enumerate(records, 1)], report, **options)
    return [e for example in made if (e := usable_part(example, report))], report


def reason(name: str, record: dict[str, Any], **options: Any) -> str:
    examples, report = read(name, record, **options)
    assert not examples and report.dropped.total() == 1 and list(report.places.values()) == ["x:1"]
    return next(iter(report.dropped))


def load(tmp_path: Path, *records: dict[str, Any], **options: Any) -> tuple[list[Example], SourceReport]:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    report = DataReport()
    return Source("trl", path=str(tmp_path / "x.jsonl"), options=options).examples(report), report.of("trl")


# ---- columns -------------------------------------------------------------------------------------------------------


def test_columns_that_nobody_reads_are_one_line(tmp_path):
    turns = [{"role": "assistant", "content": "good", "model": "m", "name": None}]
    records = [{**PAIR, "id": i, "meta": {"a": 1}, "none": None, "chosen": turns} for i in range(3)]
    assert load(tmp_path, *records)[1].notes == {"not read: `id`, `meta`, `chosen.model`": 3}


@pytest.mark.parametrize("name", ["tools", "images", "tool_calls", "reasoning_content", "thinking"])
def test_what_changes_the_meaning_costs_a_record_of_any_set(name):
    dialogue = "\n\nHuman: p\n\nAssistant:"
    row = {"chosen": f"{dialogue} c", "rejected": f"{dialogue} r"}
    assert read("hh", {**row, name: []})[0]
    assert reason("hh", {**row, name: ["x"]}).startswith(f"`{name}` is not read by this source")
    stories = {"prompt": "p", "text": "t", "reward": 1.0}
    assert read("odpo", stories, {**stories, name: "x"})[1].altered == {
        f"`{name}` is not read by this source: leave it out, or write a source: response left out": 1
    }


@pytest.mark.parametrize("name", ["question", "instruction", "input", "context"])
def test_what_was_asked_is_part_of_the_prompt_or_costs_the_record(name):
    assert "is not read beside the prompt" in reason("trl", {**PAIR, name: "Something else?"})
    assert read("trl", {**PAIR, "prompt": "Human: Why\nis it? ", name: "Why is it?"})[0]


def test_names_of_columns_are_options(tmp_path):
    row = {"ask": "Why?", "good": "Since.", "bad": "No.", "sys": "Be brief.", "fns": [TOOL]}
    names = {"prompt": "ask", "chosen": "good", "rejected": "bad", "system": "sys", "tools": "fns"}
    ((example,), report) = load(tmp_path, row, **names)
    assert example.prompt == ({"role": "system", "content": "Be brief.", "tools": [TOOL]}, user("Why?"))
    assert [r.text for r in example.responses] == ["Since.", "No."] and not report.notes
    ((example,), _) = load(tmp_path, {"ask": "a", "said": "b", "up": 0}, prompt="ask", completion="said", label="up")
    assert (example.prompt, example.responses[0].text, example.responses[0].desirable) == ("a", "b", False)


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    rows = [{"question": "q", "good": "g", "bad": "b"}] * 2
    for options in ({}, {"chosen": "god", "rejected": "bad"}):
        with pytest.raises(UserError, match=r"The columns are: `question`, `good`, `bad`\.") as caught:
            load(tmp_path, *rows, **options)
    assert "missing `god` (2 times" in str(caught.value)


# ---- implicit prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "begun"),
    [
        ("\n\nHuman: Which?\n\nAssistant:", " The sky is "),
        ("<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n", "The sky is "),
        ("<start_of_turn>user\nWhich?<end_of_turn>\n<start_of_turn>model\n", ""),
        ("<|user|>\nWhich?</s>\n<|assistant|>\n", "It is "),
        ("<|start_header_id|>user<|end_header_id|>\n\nQ<|start_header_id|>assistant<|end_header_id|>\n\n", "It "),
        ("[INST] Which? [/INST]", " It is "),
        ("### Instruction:\nWhich?\n\n### Response:", "\nIt "),
        ("Q: Which?\nA:", " It "),
    ],
)
def test_an_implicit_prompt_ends_at_the_assistants_turn(prompt, begun):
    ending = "blue and grey and anything else that one may think of", "green"
    ((example,), _) = read(
        "trl", {k: f"{prompt}{begun}{x}" for k, x in zip(("chosen", "rejected"), ending, strict=True)}
    )
    assert example.prompt == prompt
    assert [r.text for r in example.responses] == [begun + x for x in ending]


def test_texts_that_share_little_have_no_prompt():
    texts = {"chosen": "Two spiders have sixteen legs, each eight.", "rejected": "Two spiders have twelve, each six."}
    assert reason("trl", texts).startswith("no prompt: the texts do not share one; name its column by options")
    close = {"chosen": "The capital of France is Paris.", "rejected": "The capital of France is Lyon."}
    assert read("trl", close)[0][0].prompt == "The capital of France is"
    assert "if `ask` is it: options: {prompt: ask}" in reason("trl", {**close, "ask": "Name the capital of France."})
    differ = {k: f"\n\nAssistant: Hi\n\nHuman: {x}" for k, x in (("chosen", "a"), ("rejected", "b"))}
    assert reason("trl", differ) == "prompts of chosen and rejected differ"


# ---- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([{"from": "HUMAN", "value": "p"}], (user("p"),)),
        ([{"role": "system", "content": " "}, user("p")], (user("p"),)),
        ([{"role": "developer", "content": "s"}, user("p")], ({"role": "system", "content": "s"}, user("p"))),
        ([user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], (user("ab"),)),
        (
            [user("p"), {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
             {"role": "function", "name": "f", "content": ""}],
            (user("p"),
             {"role": "assistant", "content": "",
              "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
             {"role": "tool", "content": "", "name": "f"}),
        ),
    ],
)  # fmt: skip
def test_messages_in_other_words(turns, expected):
    for given in (turns, json.dumps(turns)):
        ((example,), _) = read("trl", {"prompt": given, "chosen": "c", "rejected": "r"})
        assert example.prompt == expected


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([user([{"type": "image"}])], "holds a part of type `image`; text alone is read"),
        ([user("p"), {"role": "tool", "content": "x"}], "do not alternate"),
        ([user("p"), {"role": "assistant", "tool_calls": [{"id": "1"}]}], "a call of a tool has no name"),
        ([user("p"), {"from": "function_call", "value": "no json"}], "a call of a tool is no JSON"),
    ],
)
def test_messages_that_cannot_be_read(turns, words):
    assert words in reason("trl", {"prompt": turns, "chosen": "c", "rejected": "r"})


def test_json_that_is_an_answer_stays_one():
    ((example,), _) = read("trl", {"prompt": "Give JSON.", "chosen": '[{"a": 1}]', "rejected": "{}"})
    assert [r.text for r in example.responses] == ['[{"a": 1}]', "{}"]


def test_two_system_texts():
    talk = {"messages": [{"role": "system", "content": "s"}, user("p"), {"role": "assistant", "content": "a"}]}
    assert read("sft", {**talk, "system": "s"})[0][0].prompt[0] == {"role": "system", "content": "s"}
    assert reason("sft", {**talk, "system": "t"}).startswith("two system texts")


def test_reasoning_beside_a_completion():
    ((example,), _) = read("sft", {"prompt": "p", "completion": "c", "reasoning_content": "since"})
    assert example.prompt == (user("p"),) and example.responses[0].message == {"reasoning_content": "since"}


# ---- further on ----------------------------------------------------------------------------------------------------

WITH_TOOLS = Example(
    (user("Time?", tools=[TOOL]),),
    (
        Response("", rank=0, message={"tool_calls": [CALL]}),
        Response("Noon.", rank=1, message={"reasoning_content": "x"}),
    ),
)


def test_calls_and_reasoning_are_shown_and_measured():
    class Length(Reward):
        """Characters."""

        def __call__(self, prompts, responses):
            return [float(len(r)) for r in responses]

        def fingerprint(self):
            return "characters"

    assert [r.shown for r in WITH_TOOLS.responses] == [
        '<tool_call>{"name": "clock", "arguments": {"zone": "UTC"}}</tool_call>',
        "<think>x</think>\nNoon.",
    ]
    assert as_text(WITH_TOOLS.prompt) == f"tools: {json.dumps([TOOL])}\nuser: Time?"
    (measured,) = annotate([WITH_TOOLS], {"length": Length()}, progress=False)
    assert [r.rewards["length"] for r in measured.responses] == [len(r.shown) for r in WITH_TOOLS.responses]


def test_tools_survive_a_written_preference_set():
    line = json.loads(json.dumps(record(WITH_TOOLS.prompt, ["a", "b"], [1.0, 0.0], 0.0)))
    ((example,), _) = read("trl", line)
    assert example.prompt == WITH_TOOLS.prompt and [r.text for r in example.responses] == ["a", "b"]


def test_a_text_prompt_has_no_place_for_calls():
    report = DataReport()
    example = Example("Time?", (Response("", message={"tool_calls": [CALL]}),))
    assert Encoder(tokenizer("qwen2")).encode([example], report) == [None]
    assert report.of("").dropped == {"a text prompt has no turn to write `tool_calls` in": 1}


def test_prompts_alone_can_be_answered(tmp_path):
    rows = [{"prompt": "a"}, {"question": "b", "system": "s"}, {"messages": [user("c")]}, {"prompt": None}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = Source("prompts", path=str(tmp_path / "x.jsonl"))
    report = DataReport()
    assert len(source.examples(report)) == 3 and report.of("prompts").dropped == {"missing `prompt`": 1}
    assert read_prompts(source, tokenizer("qwen2")) == [
        "a",
        ({"role": "system", "content": "s"}, user("b")),
        (user("c"),),
    ]
    assert reason("prompts", {"messages": [user("c"), {"role": "assistant", "content": "d"}]})


# ---- sets ----------------------------------------------------------------------------------------------------------


def test_helpsteer2_turns():
    row = {"prompt": "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc", "response": "d"}
    ratings = dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), 1)
    ((example,), _) = read("helpsteer2", {**row, **ratings})
    assert [(m["role"], m["content"]) for m in example.prompt] == [("user", "a"), ("assistant", "b"), ("user", "c")]


@pytest.mark.parametrize(
    ("verdict", "votes", "chosen", "soft"),
    [(-2, [-2, -1, 0], "1", 5 / 6), (3, [3, 2], "2", 1.0), (1, [1, -1], "2", 0.5)],
)
def test_helpsteer3_verdicts(verdict, votes, chosen, soft):
    row = {"context": [user("p")], "response1": "1", "response2": "2", "overall_preference": verdict}
    ((example,), _) = read("helpsteer3", {**row, "individual_preference": [{"score": v} for v in votes]})
    assert example.responses[0].text == chosen and example.soft_label == pytest.approx(soft)
    assert reason("helpsteer3", {**row, "overall_preference": 0}) == "tie"


def test_argilla_ratings():
    row = {"input": "p", "chosen": "c", "rejected": "r"}
    ((example,), _) = read("argilla", {**row, "rating": [3, 9], "status": "swapped"})
    assert [r.score for r in example.responses] == [9, 3]
    assert reason("argilla", {**row, "status": "tie"}) == "tie"
    assert reason("argilla", {**row, "chosen_rating": 4, "rejected_rating": 2}, min_rating=5) == (
        "chosen response rated below 5"
    )
