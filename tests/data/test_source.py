"""Where a source finds its records, what it does with unusable ones, and what it says when something is wrong."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from attrs import evolve

from upo.data import sources
from upo.data.example import Example, Response
from upo.data.report import DataReport, SourceReport
from upo.data.source import Source, usable_part
from upo.errors import UserError

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}


def write(path: Path, *records: dict) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def load(report: DataReport | None = None, **arguments) -> list[Example]:
    return Source(**arguments).examples(report if report is not None else DataReport())


def own(rows, report, *, word: str = "x"):
    """A source of a test: `word` for every record."""
    for row in rows:
        if row.data.get("skip"):
            report.drop("skipped", row.where)
        else:
            yield Example(row.text("prompt"), (Response(word, desirable=True),))


def invented(rows, report):
    """A source that needs no file."""
    assert list(rows) == []
    yield Example("p", (Response("r"),))


def test_reads_a_file_and_reports(tmp_path):
    path = write(tmp_path / "x.jsonl", PAIR, {**PAIR, "chosen": True}, {"prompt": "p", "chosen": "c"}, PAIR)
    report = DataReport()
    examples = load(report, name="trl", path=path)
    assert len(examples) == 2
    assert {e.source for e in examples} == {"trl"}
    assert report.to_dict() == {
        "trl": {
            "origin": path,
            "kept": {"examples": 2},
            "dropped": {"`chosen` is bool, not text": 1, "missing `rejected`": 1},
            "altered": {},
            "notes": {},
            "places": {"`chosen` is bool, not text": f"{path}:2", "missing `rejected`": f"{path}:3"},
        }
    }


def test_local_wins_where_it_exists(tmp_path):
    near = write(tmp_path / "near.jsonl", {**PAIR, "prompt": "near"})
    far = write(tmp_path / "far.jsonl", {**PAIR, "prompt": "far"})
    report = DataReport()
    assert load(report, name="trl", path=far, local=near)[0].prompt == "near"
    assert report.of("trl").origin == near
    assert load(name="trl", path=far, local=str(tmp_path / "absent.jsonl"))[0].prompt == "far"


def test_what_the_hub_is_asked_for(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, data_files, split, streaming):
        assert not streaming
        asked.append((name, data_files, split))
        return datasets.Dataset.from_list([PAIR, {**PAIR, "chosen": None}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    report = DataReport()
    assert len(load(report, name="trl", path="owner/name", split="test", files="a.json", local="absent")) == 1
    assert asked == [("owner/name", "a.json", "test")]
    assert report.of("trl").origin == "hub: owner/name [test]"
    assert report.of("trl").places == {"missing `chosen`": "owner/name[test]:2"}


def test_hub_out_of_reach(monkeypatch):
    import datasets

    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        UserError, match=r"`Anthropic/hh-rlhf` .*cannot be read from the hub: ConnectionError: Couldn't reach the Hub\n"
    ) as caught:
        load(name="hh", path="Anthropic/hh-rlhf")
    assert "give `local:`" in str(caught.value)
    assert len(str(caught.value).split("\n")) <= 3


@pytest.mark.parametrize("path", ["./hh", "/no/such/folder", "data/hh/train.jsonl", "~/hh", "a/b/c", None])
def test_nothing_there(path):
    with pytest.raises(UserError, match=rf"`hh`: nothing at path={path}, local=nowhere/hh\nSet `path`"):
        load(name="hh", path=path, local="nowhere/hh")


def test_unknown_names_and_options(tmp_path):
    path = write(tmp_path / "x.jsonl", PAIR)
    with pytest.raises(UserError, match=r"unknown data source `ultrafedback`; did you mean `ultrafeedback`\?"):
        load(name="ultrafedback", path=path)
    with pytest.raises(UserError, match=r"`upo\.data\.nowhere\.f` cannot be imported"):
        load(name="upo.data.nowhere.f", path=path)
    with pytest.raises(UserError, match=r"has no option `max_pair`; did you mean `max_pairs`\?"):
        load(name="shp", path=path, options={"max_pair": 3})
    with pytest.raises(UserError, match="`llmbar` has no option `a`; It has none"):
        load(name="llmbar", path=path, options={"a": 1})


def test_own_function_by_import_path(tmp_path):
    path = write(tmp_path / "x.jsonl", {"prompt": "p"}, {"prompt": "q", "skip": 1}, {"prompt": "r"})
    report = DataReport()
    examples = load(report, name=f"{__name__}.own", path=path, label="mine", options={"word": "hello"})
    assert [(e.prompt, e.responses[0].text, e.source) for e in examples] == [
        ("p", "hello", "mine"),
        ("r", "hello", "mine"),
    ]
    assert report.of("mine").dropped == {"skipped": 1}


def test_source_without_a_file():
    assert [e.source for e in load(name=f"{__name__}.invented")] == ["invented"]


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (Example("p", (Response("a", score=float("nan")), Response("b", score=1.0))), "response 0 has score=nan"),
        (Example("p", (Response("a", rank=float("inf")),)), "response 0 has rank=inf"),
        (Example("p", (Response("a"), Response("b", attributes={"tone": float("-inf")}))), "response 1 has tone=-inf"),
        (Example("p", (Response("a", rank=0), Response("b", rank=1)), soft_label=1.5), "soft_label=1.5"),
        (Example("p", (Response("a", rank=0), Response("b", rank=1)), soft_label=float("nan")), "soft_label=nan"),
    ],
)
def test_numbers_of_own_sources_are_finite(example, words, monkeypatch):
    made = [Example("q", (Response("c"),)), example]
    monkeypatch.setattr(f"{__name__}.invented", lambda rows, report: made)
    with pytest.raises(UserError, match=f"invented: example 2.*{words}"):
        load(name=f"{__name__}.invented")


def test_limit_takes_the_first(tmp_path):
    path = write(tmp_path / "x.jsonl", *({**PAIR, "prompt": str(i)} for i in range(9)))
    report = DataReport()
    assert [e.prompt for e in load(report, name="trl", path=path, limit=3)] == ["0", "1", "2"]
    assert report.of("trl").kept == {"examples": 3}


def test_nothing_usable_says_why(tmp_path):
    path = write(tmp_path / "x.jsonl", PAIR, PAIR)
    with pytest.raises(UserError, match=r"shp: no usable example in .*missing `history` \(2 times, first at .*:1\)"):
        load(name="shp", path=path)
    with pytest.raises(UserError, match="no record at all"):
        load(name="trl", path=write(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="neither `path` nor `local` is set"):
        load(name="hh")


def test_malformed_line_stops_the_run(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(PAIR) + '\n{"prompt": "p", "chosen"\n')
    with pytest.raises(UserError, match=r"x\.jsonl:2: malformed JSON"):
        load(name="trl", path=str(tmp_path / "x.jsonl"))


def pair(chosen="good", rejected="bad", ranks=(0, 1), scores=(None, None), prompt="p") -> Example:
    texts = zip((chosen, rejected), ranks, scores, strict=True)
    return Example(prompt, tuple(Response(t, rank=r, score=s) for t, r, s in texts))


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (pair(), None),
        (pair(" \n"), "empty chosen"),
        (pair(rejected=""), "empty rejected"),
        (pair("", ranks=(1, 0)), "empty rejected"),
        (pair("same ", "same "), "identical pair"),
        (pair("if x:\n    y()", "if x:\n  y()"), None),
        (pair("    return x", "return x"), None),
        (pair(ranks=(0, 0)), "tie"),
        (pair(scores=(7.0, 7.0)), "tie"),
        (pair(scores=(7.0, None)), None),
        (pair(scores=(8.0, 7.0)), None),
        (pair(prompt=" "), "empty prompt"),
        (pair(prompt=({"role": "user", "content": ""},)), "empty prompt"),
        (Example("p", (Response("", desirable=False),)), "empty response"),
    ],
)
def test_what_cannot_be_learned_from_is_dropped(example, reason):
    report = SourceReport()
    assert usable_part(example, report) == (None if reason else example)
    assert report.dropped == ({reason: 1} if reason else {})


def test_lists_lose_empty_and_repeated_responses_and_keep_ties():
    texts = [("a", 1.0), ("", 2.0), ("b", 1.0), ("a ", 3.0), ("  ", 0.0)]
    example = Example("p", tuple(Response(t, score=s) for t, s in texts))
    report = SourceReport()
    left = usable_part(example, report)
    assert left is not None
    assert [(r.text, r.score) for r in left.responses] == [("a", 1.0), ("b", 1.0)]
    assert report.altered == {"empty response left out": 2, "repeated response left out": 1}
    assert not report.dropped
    assert usable_part(evolve(left, source="x"), SourceReport()) == evolve(left, source="x")


def test_reports_add_up_and_print():
    one, two = DataReport(), DataReport()
    one.keep("hh", 5)
    one.drop("hh", "tie", "f:3")
    two.drop("hh", "tie", "f:1")
    two.drop("hh", "missing [x]", number=2)
    two.count("shp", "prompt cut on the left", number=4)
    two.keep("hh", 3, "train pairs")
    total = one + two
    assert total.to_dict()["hh"]["kept"] == {"examples": 5, "train pairs": 3}
    assert total.to_dict()["hh"]["dropped"] == {"tie": 2, "missing [x]": 2}
    assert total.to_dict()["hh"]["places"] == {"tie": "f:3"}
    assert total.to_dict()["shp"]["altered"] == {"prompt cut on the left": 4}
    assert one.to_dict()["hh"]["dropped"] == {"tie": 1}
    assert json.loads(json.dumps(total.to_dict())) == total.to_dict()

    import io

    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=120).print(total.table())
    for word in ("hh", "shp", "missing [x]", "f:3", "prompt cut on the left"):
        assert word in text.getvalue()


def test_every_source_is_listed_and_documented():
    files = {f.stem for f in Path(sources.__file__).parent.glob("*.py")} - {
        "__init__",
        "__main__",
        "parts",
        "world_grammar",
    }
    assert files == set(sources.__all__)
    assert all(getattr(sources, name).__doc__ for name in sources.__all__)


def test_every_key_has_help():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=Source)
    config = parser.parse_args(["--data.name=hh", "--data.weight=0.5", "--data.options={max_pairs: 3}"])
    assert parser.instantiate(config).data == Source("hh", weight=0.5, options={"max_pairs": 3})
    text = " ".join(parser.format_help().split())
    for key in fields(Source):
        assert f"--data.{key.name}" in text
    assert "0.5 takes a fixed random half" in text


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"weight": -1.0}, {"limit": 0}])
def test_weight_and_limit_have_ranges(wrong):
    with pytest.raises(UserError, match="`weight` must be above 0, `limit` at least 1"):
        Source("hh", **wrong)
