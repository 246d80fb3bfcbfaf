"""Preference sets that a model writes itself."""

import json
from pathlib import Path

import pytest

from upo.cli.command import command
from upo.data.example import Example, Response
from upo.data.report import DataReport
from upo.data.source import Source
from upo.errors import UserError
from upo.rewards import Sentiment
from upo.rollout.preference_set import generate, record


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.turns(3)
@pytest.mark.slow
def test_pairs_of_a_models_own_stories(stories260k: str, tmp_path: Path) -> None:
    options = {"self_prompts": 30, "prompt_tokens": 20, "responses": 4, "max_new_tokens": 24}
    generate(stories260k, Sentiment(), tmp_path / "a.jsonl", **options)
    rows = lines(tmp_path / "a.jsonl")
    assert len({row["prompt"] for row in rows}) == len(rows) == 30
    assert all(0 < len(row["responses"]) <= 4 for row in rows)
    pairs = [row for row in rows if "chosen" in row]
    assert len(pairs) > 15
    for row in pairs:
        scores = {r["text"]: r["score"] for r in row["responses"]}
        assert scores[row["chosen"]] == max(scores.values()) > min(scores.values()) == scores[row["rejected"]]
        assert Sentiment()([row["prompt"]], [row["chosen"]]) == [scores[row["chosen"]]]

    report = DataReport()
    read = Source(name="trl", path=str(tmp_path / "a.jsonl")).examples(report)
    assert [(e.prompt, *(r.text for r in e.responses)) for e in read] == [
        (row["prompt"], row["chosen"], row["rejected"]) for row in pairs
    ]

    generate(stories260k, Sentiment(), tmp_path / "b.jsonl", **options, batch_size=7)
    assert (tmp_path / "b.jsonl").read_text() == (tmp_path / "a.jsonl").read_text()
    generate(stories260k, Sentiment(), tmp_path / "c.jsonl", **options, seed=1)
    assert not {row["prompt"] for row in lines(tmp_path / "c.jsonl")} <= {row["prompt"] for row in rows}


def test_prompts_of_a_source_through_the_command_line(
    stories260k: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "hh.jsonl"
    source = ["--prompts.name", "hh", "--prompts.path", f"{shared}/data/hh", "--prompts.limit", "6"]
    args = ["--model", stories260k, *source, "--judge", "Words", "--responses", "2", "--max_new_tokens", "8"]
    command(generate, "generate", [*args, "--out", str(out)], positional=False)
    rows = lines(out)
    assert len(rows) == 6 and rows[0]["prompt"][0]["role"] == "user"
    assert "6 prompts" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        command(generate, "generate", [*args, "--out", str(out)], positional=False)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {out} exists; name another file or add --overwrite\n"


def test_prompts_that_no_template_writes_are_left_out(
    stories260k: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Before anything is sampled, and said."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "-3"}]
    rows = [{"prompt": [{"role": "user", "content": f"Say {i}"}]} for i in range(3)] + [{"prompt": turns}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(name="test_generate.asked", path=str(tmp_path / "asked.jsonl"))
    generate(stories260k, Sentiment(), tmp_path / "a.jsonl", prompts=source, responses=2, max_new_tokens=4)
    assert len(lines(tmp_path / "a.jsonl")) == 3
    assert "1 of 4 prompts are left out: the chat template cannot write them" in capsys.readouterr().out


def asked(rows, report):
    """A source of prompts as they are."""
    for row in rows:
        yield Example(tuple(row.data["prompt"]), (Response("x"),))


def test_a_margin_keeps_close_calls_out() -> None:
    texts, scores = ["good", "fair", "bad"], [0.9, 0.5, 0.3]
    assert record("p", texts, scores, 0.5)["chosen"] == "good"
    assert record("p", texts, scores, 0.5)["rejected"] == "bad"
    assert "chosen" not in record("p", texts, scores, 0.7)
    assert "chosen" not in record("p", ["same"], [0.5], 0.0)
    assert "chosen" not in record("p", [], [], 0.0)


def test_prompts_come_from_one_place(stories260k: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="either --prompts"):
        generate(stories260k, Sentiment(), tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="raise --prompt_tokens"):
        generate(stories260k, Sentiment(), tmp_path / "x.jsonl", self_prompts=50, prompt_tokens=2)
