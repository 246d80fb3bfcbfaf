"""One row for each file of shared/data/awkward: what its README says is right."""

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from families import tokenizer
from tiny import tokenizer as plain_tokenizer

from upo.data.example import Example, as_text
from upo.data.report import DataReport, SourceReport
from upo.data.source import Source
from upo.data.tokenize import Encoder, Limits, truncate
from upo.errors import UserError


@pytest.fixture
def awkward(shared: Path) -> Path:
    folder = shared / "data" / "awkward"
    if not folder.is_dir():
        pytest.skip(f"no awkward inputs at {folder}")
    return folder


def read(file: Path, name: str = "trl", **options: Any) -> tuple[list[Example], SourceReport]:
    report = DataReport()
    examples = Source(name, path=str(file), options=options).examples(report)
    return examples, report.of(name)


def texts(example: Example) -> list[str]:
    return [r.text for r in example.responses]


def user(*contents: str, system: str = "") -> tuple[dict[str, Any], ...]:
    head = ({"role": "system", "content": system},) if system else ()
    return (*head, *({"role": "user", "content": text} for text in contents))


def written(examples: list[Example], family: str) -> tuple[list[list[str] | None], SourceReport]:
    """Prompt and responses of each example as a family's model reads them; None for a dropped one."""
    made, report = tokenizer(family), DataReport()
    units = Encoder(made).encode(examples, report)
    return [u and [made.decode(u.prompt), *(made.decode(r) for r in u.responses)] for u in units], report.of("trl")


# ---- columns -------------------------------------------------------------------------------------------------------


def test_orca_dpo_pairs(awkward):
    examples, report = read(awkward / "orca_dpo_pairs.jsonl")
    assert [e.prompt for e in examples[:2]] == [
        user("How many legs do two spiders have?", system="You are an AI assistant. Think step by step."),
        user("Translate to German: good morning"),
    ]
    assert texts(examples[1]) == ["Guten Morgen", "Gute Nacht"] and len(examples) == 4
    assert not report.dropped and not report.notes


def test_alpaca_dpo(awkward):
    examples, _ = read(awkward / "alpaca_dpo.jsonl")
    assert examples[0].prompt == user("Summarize the text.\n\nBees collect nectar and make honey.")
    assert texts(examples[1]) == ["He goes home.", "He go to home."]


@pytest.mark.parametrize("name", ["system_column.jsonl", "system_column_messages.jsonl"])
def test_system_column(awkward, name):
    examples, report = read(awkward / name)
    assert examples[0].prompt == user("Say good morning.", system="Answer in French.")
    assert len({as_text(e.prompt) for e in examples}) == len(examples) and not report.notes


def test_string_pairs(awkward):
    examples, _ = read(awkward / "string_pairs.jsonl")
    assert examples[0].prompt == "How do I bake bread?"
    rows, report = written(examples, "qwen2")
    assert rows[0] and rows[0][0] == "How do I bake bread?"
    ((note, number),) = report.notes.items()
    assert number == 6 and "chat template" in note and "options: {chat: true}" in note
    assert read(awkward / "string_pairs.jsonl", chat=True)[0][0].prompt == user("How do I bake bread?")


# ---- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["json_strings", "content_parts", "human_roles"])
def test_other_words_for_messages(awkward, name):
    ((example,), report) = read(awkward / f"{name}.jsonl")
    assert example.prompt == user("Hi") and texts(example)[0] == "Hello!" and not report.notes


def test_prompt_text_chosen_msg(awkward):
    ((example,), _) = read(awkward / "prompt_text_chosen_msg.jsonl")
    assert example.prompt == user("Why is the sky blue?")
    assert texts(example) == ["Rayleigh scattering.", "It just is."]


def test_swift(awkward):
    examples, _ = read(awkward / "swift.jsonl", "sharegpt")
    assert [e.prompt for e in examples] == [user("Hi"), user("Bye")]
    assert [texts(e) for e in examples] == [["Hello!", "Go away."], ["See you.", "Whatever."]]
    assert read(awkward / "swift.jsonl")[0] == [evolve(e, source="trl") for e in examples]


def test_sharegpt_both(awkward):
    with pytest.raises(UserError, match="two system texts: `system` and the conversation's own system turn"):
        read(awkward / "sharegpt_both.jsonl", "sharegpt")


# ---- tools and reasoning -------------------------------------------------------------------------------------------


def test_tool_calls_text(awkward):
    examples, report = read(awkward / "tool_calls_text.jsonl")
    assert not report.dropped and not report.notes
    rows, _ = written(examples, "qwen2")
    assert all(row and '"name": "get_weather", "description": "Current weather of a city"' in row[0] for row in rows)
    call = 'Let me check.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call><|im_end|>'
    assert rows[1] and rows[1][1:] == [call % "Bergen", call % "Paris"]
    rows, report = written(examples, "chatml")
    assert rows == [None, None] and report.dropped == {"chat template does not write `tools`": 2}


def test_tool_calls_null(awkward):
    examples, report = read(awkward / "tool_calls_null.jsonl")
    assert len(examples) == 4 and not report.dropped and not report.notes
    assert [r.text for e in examples[:3] for r in e.responses] == ["", "No idea."] * 3
    rows, _ = written(examples, "qwen2")
    assert all(row and row[1].lstrip().startswith("<tool_call>") for row in rows[:3]) and rows[0] == rows[1] == rows[2]
    assert rows[3] and "<tool_response>\n-3 C, snow" in rows[3][0] and "get_weather" in rows[3][0]


def test_sharegpt_tools(awkward):
    ((example,), report) = read(awkward / "sharegpt_tools.jsonl", "sharegpt")
    call = {"type": "function", "function": {"name": "w", "arguments": {}}}
    assert example.prompt[1:] == (
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "-3"},
    )
    assert texts(example) == ["-3 C", "sunny"] and not report.notes


def test_reasoning_content(awkward):
    examples, report = read(awkward / "reasoning_content.jsonl")
    assert not report.dropped and not report.notes, "the second pair differs in its reasoning alone"
    rows, _ = written(examples, "qwen3")
    assert rows[1] and rows[1][1:] == [
        f"<think>\n{thought}\n</think>\n\nNo.<|im_end|>" for thought in ("91 = 7 * 13.", "It ends in 1, so no.")
    ]
    rows, report = written(examples, "chatml")
    assert rows == [None, None] and report.dropped == {"chat template does not write `reasoning_content`": 2}


def test_templates_that_refuse(awkward):
    made = tokenizer("chatml")
    made.chat_template = (awkward / "raise.jinja").read_text()
    for name, kept, dropped in (("system_pairs", 0, 6), ("one_system_of_many", 12, 1)):
        examples, _ = read(awkward / f"{name}.jsonl")
        report = DataReport()
        units = Encoder(made).encode(examples, report)
        reason = "chat template refuses: System role not supported"
        assert report.of("trl").dropped == {reason: dropped}
        assert report.of("trl").places[reason].endswith(f"{name}.jsonl:1")
        assert sum(u is not None for u in units) == kept


# ---- formatted texts, lengths --------------------------------------------------------------------------------------


def test_preformatted_bos(awkward):
    examples, _ = read(awkward / "preformatted_bos.jsonl")
    made = tokenizer("llama2")
    for unit in Encoder(made).encode(examples, DataReport()):
        assert unit is not None and list(unit.prompt).count(made.bos_token_id) == 1


def test_long(awkward):
    examples, _ = read(awkward / "long.jsonl")
    cuts = ["truncate_prompt_left", "truncate_response"]
    encoder = Encoder(plain_tokenizer())
    for max_response, dropped in ((64, True), (32, False)):
        report = DataReport()
        units = encoder.encode(examples, report)
        left = [truncate(u, Limits(64, max_response, cuts, encoder.bos), report) for u in units if u]
        notes = report.of("trl").notes
        assert (None in left) == dropped == any("data.max_response below data.max_length" in x for x in notes)


# ---- single responses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sft_messages", "sft_prompt_completion"])
@pytest.mark.parametrize("source", ["trl", "sft"])
def test_plain_sft(awkward, name, source):
    examples, report = read(awkward / f"{name}.jsonl", source)
    assert [texts(e)[0].strip() for e in examples] == ["Hello!", "See you."]
    assert all(e.responses[0].desirable is None for e in examples) and not report.notes
    assert examples[0].prompt == (user("Hi") if name == "sft_messages" else "Hi")


def test_kto_all_true(awkward):
    examples, report = read(awkward / "kto_all_true.jsonl")
    number = len(examples)
    assert report.notes == {f"labels: {number} desirable, 0 undesirable": number, "all labels are desirable": number}


@pytest.mark.parametrize("name", ["kto_int", "kto_str"])
def test_labels_in_other_words(awkward, name):
    examples, report = read(awkward / f"{name}.jsonl")
    assert [e.responses[0].desirable for e in examples] == [True, False]
    assert report.notes == {"labels: 1 desirable, 1 undesirable": 2}


def test_kto_null_content(awkward):
    examples, report = read(awkward / "kto_chosen_fields.jsonl")
    assert len(examples) == 1 and report.dropped == {"missing `completion`": 1}
    examples, report = read(awkward / "kto.parquet")
    assert [e.responses[0].shown for e in examples] == [
        "Hello",
        '<tool_call>{"name": "x", "arguments": {}}</tool_call>',
    ]
    assert "not read: `score`" in report.notes


# ---- sets ----------------------------------------------------------------------------------------------------------


def test_helpsteer2(awkward):
    ((example,), report) = read(awkward / "helpsteer2.jsonl", "helpsteer2")
    assert example.prompt == user("Why is the sky blue?")
    assert [(r.text, r.score, r.attributes["verbosity"]) for r in example.responses] == [
        ("Rayleigh scattering.", 4, 1),
        ("It just is.", 0, 0),
    ]
    assert not report.notes


def test_nectar(awkward):
    ((example,), _) = read(awkward / "nectar.jsonl", "nectar")
    assert example.prompt == user("Why is the sky blue?")
    assert [(r.text, r.rank) for r in example.responses] == [("Rayleigh scattering.", 0), ("It just is.", 1)]


# ---- hostile values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("deep.jsonl", "trl", r"deep\.jsonl:\d+: JSON nested too deeply"),
        ("huge_int.jsonl", "trl", r"huge_int\.jsonl:\d+: malformed JSON: Exceeds the limit \(4300 digits\)"),
        ("far_timestamp.parquet", "trl", r"far_timestamp\.parquet: .*date value out of range"),
        (
            "overflow_llmbar.jsonl",
            "llmbar",
            r"`label` is too large a number \(1 times, first at .*overflow_llmbar\.jsonl:1\)",
        ),
        ("prmbench_surrogate.jsonl", "prmbench", r"not valid Unicode"),
        ("oasst_cycle_lost.jsonl", "oasst", r"message below itself, or below one that is left out \(3 times"),
        ("oasst_self_parent.jsonl", "oasst", r"no usable example"),
    ],
)
def test_hostile_values_are_one_sentence(awkward, name, source, message):
    with pytest.raises(UserError, match=message) as caught:
        read(awkward / name, source)
    assert len(str(caught.value).split("\n")) <= 3


def test_ultrafeedback_rating(awkward):
    ((example,), _) = read(awkward / "ultrafeedback_rating.jsonl", "ultrafeedback")
    assert [(r.score, r.attributes) for r in example.responses] == [(1, {}), (2, {})]


def test_every_file_has_a_row(awkward):
    """Whatever is added to the folder needs a test here."""
    tested = Path(__file__).read_text()
    assert [f.name for f in awkward.iterdir() if f.stem not in tested and f.name != "README.md"] == []
    assert json.loads((awkward / "nectar.jsonl").read_text())["turns"] == 1
