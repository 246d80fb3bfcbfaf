"""Which files of a folder are read for a split, kinds of files, and what `datasets` saved."""

import json
from pathlib import Path
from typing import Any

import pytest

from upo.data.example import Example
from upo.data.report import DataReport
from upo.data.row import Row, Unusable
from upo.data.source import Source
from upo.errors import UserError


def pair(prompt: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": "good", "rejected": "bad"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def put(folder: Path, *names: str) -> Path:
    """A record a file, whose prompt is the file's name."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(pair(name)) + "\n")
    return folder


def prompts(path: Path, report: DataReport | None = None, **options: Any) -> list[str]:
    found = Source("trl", path=str(path), **options).examples(DataReport() if report is None else report)
    return [str(e.prompt) for e in found]


BOTH = ("train.jsonl", "test.jsonl")


@pytest.mark.parametrize(
    ("names", "split", "read"),
    [
        (BOTH, "train", ["train.jsonl"]),
        (BOTH, "test", ["test.jsonl"]),
        (
            ("a-train-00000-of-00002.jsonl", "a-train-00001-of-00002.jsonl", "a-dev.jsonl"),
            "validation",
            ["a-dev.jsonl"],
        ),
        (("data/train-0.jsonl", "data/test-0.jsonl"), "train", ["data/train-0.jsonl"]),
        (("train/0.jsonl", "test/0.jsonl"), "test", ["test/0.jsonl"]),
        (("train_prefs.jsonl", "train_sft.jsonl", "test_prefs.jsonl"), "train_sft", ["train_sft.jsonl"]),
        ((*BOTH, "notes.jsonl"), "train", ["train.jsonl"]),
        (("a.jsonl", "b.jsonl"), "train", ["a.jsonl", "b.jsonl"]),
        (("latest.jsonl", "contrast.jsonl"), "train", ["contrast.jsonl", "latest.jsonl"]),
        (("x.test.jsonl", "y.test.jsonl"), "train", ["x.test.jsonl", "y.test.jsonl"]),
    ],
)
def test_names_of_files_say_the_split(folder, names, split, read):
    assert prompts(put(folder, *names), split=split) == read


@pytest.mark.parametrize(
    ("names", "split", "words"),
    [
        (BOTH, "validation", "has no split `validation`; there are: test, train"),
        (("x.test.jsonl",), "validation", "has no split `validation`; there are: test"),
        (("test.jsonl", "dev.jsonl"), "train", "has no split `train`; there are: test, validation"),
        (("a.jsonl",), "test", "has no split `test`; nothing in it is named by a split"),
        (("train_prefs.jsonl",), "train_sft", "has no split `train_sft`; there are: train"),
        (BOTH, "train[:10%]", "has no split `train"),
        (("train_and_test.jsonl", "train.jsonl"), "train", "its name says test and train; choose files by `files`"),
    ],
)
def test_a_split_that_is_not_there_is_refused(folder, names, split, words):
    with pytest.raises(UserError) as caught:
        prompts(put(folder, *names), split=split)
    assert words in str(caught.value)


def test_a_file_is_one_part(folder):
    put(folder, *BOTH, "x.jsonl")
    report = DataReport()
    assert prompts(folder / "test.jsonl", report) == ["test.jsonl"]
    assert list(report.of("trl").notes) == ["read from a file of the split `test`"]
    assert prompts(folder / "test.jsonl", split="test") == ["test.jsonl"]
    for name in ("x.jsonl", "test.jsonl"):
        with pytest.raises(UserError, match="cannot give `split: validation`: one file is one part"):
            prompts(folder / name, split="validation")


def test_what_is_chosen_by_hand_or_stands_in_is_read_and_said(folder):
    put(folder, *BOTH)
    report = DataReport()
    assert prompts(folder, report, files="t*.jsonl") == ["test.jsonl", "train.jsonl"]
    assert list(report.of("trl").notes) == ["files of several splits are read, as `files` says: test, train"]
    assert prompts(folder, files="t*.jsonl", split="test") == ["test.jsonl"]
    alone, report = put(folder / "alone", "x.test.jsonl"), DataReport()
    found = Source("trl", path="owner/name", local=str(alone), split="train").examples(report)
    assert len(found) == 1
    assert list(report.of("trl").notes) == ["read from files of the split `test`: no file is named train"]


def test_the_report_says_how_many_files_were_left_out(folder):
    report = DataReport()
    prompts(put(folder, *BOTH, "more/train.jsonl"), report)
    assert list(report.of("trl").notes) == ["split `train`: 1 of 2 files are read"]


# ---- what `datasets` saves -----------------------------------------------------------------------------------------


def test_saved_data_sets(folder):
    import datasets

    made = {name: datasets.Dataset.from_list([pair(name)]) for name in ("train", "test")}
    datasets.DatasetDict(made).save_to_disk(str(folder))
    assert prompts(folder) == ["train"] and prompts(folder, split="test") == ["test"]
    with pytest.raises(UserError, match="has no split `validation`; there are: test, train"):
        prompts(folder, split="validation")
    assert prompts(folder / "train") == ["train"]
    (arrow,) = (folder / "test").glob("*.arrow")
    assert prompts(arrow) == ["test"]


def test_arrow_files_of_both_kinds(tmp_path):
    import pyarrow

    table = pyarrow.table({"prompt": ["p"], "chosen": ["good"], "rejected": ["bad"]})
    for new, name in ((pyarrow.ipc.new_file, "a.arrow"), (pyarrow.ipc.new_stream, "b.arrow")):
        with new(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
        assert prompts(tmp_path / name) == ["p"]
    (tmp_path / "c.arrow").write_bytes(b"no arrow")
    with pytest.raises(UserError, match=r"c\.arrow: not a readable Arrow file"):
        prompts(tmp_path / "c.arrow")


def test_nested_nulls_of_arrow_are_no_values(tmp_path):
    """A call with a city and one with a day: as one column, each has both, one of them null."""
    import pyarrow
    import pyarrow.parquet

    calls = [[{"name": "w", "arguments": x}] for x in ({"city": "Oslo"}, {"day": "today"})]
    turns = [[{"role": "assistant", "content": None, "tool_calls": call}] for call in calls]
    asked = [[{"role": "user", "content": "p"}]]
    table = pyarrow.table({"prompt": asked, "chosen": turns[:1], "rejected": turns[1:]})
    unified = pyarrow.Table.from_pylist([{"prompt": asked[0], "chosen": turns[0], "rejected": turns[1]}])
    pyarrow.parquet.write_table(unified, tmp_path / "x.parquet")
    assert table.num_rows == 1
    (example,) = Source("trl", path=str(tmp_path / "x.parquet")).examples(DataReport())
    assert [r.message["tool_calls"][0]["function"]["arguments"] for r in example.responses] == [
        {"city": "Oslo"},
        {"day": "today"},
    ]


# ---- CSV -----------------------------------------------------------------------------------------------------------


def csv(tmp_path: Path, text: str) -> Path:
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    return tmp_path / "x.csv"


def read_csv(tmp_path: Path, name: str, text: str) -> list[Example]:
    return Source(name, path=str(csv(tmp_path, text))).examples(DataReport())


def test_csv_cells_become_what_a_source_asks_for(tmp_path):
    text = '\ufeffprompt,completion,label,system\n"a, ""b""\nc",yes,True,\n4,5,0,Be brief.\n'
    first, second = read_csv(tmp_path, "trl", text)
    assert first.prompt == ({"role": "user", "content": 'a, "b"\nc'},) and first.responses[0].desirable is True
    assert second.prompt[0] == {"role": "system", "content": "Be brief."} and second.responses[0].text == "5"
    assert second.responses[0].desirable is False
    messages = json.dumps([{"role": "user", "content": "p"}]).replace('"', '""')
    (example,) = read_csv(tmp_path, "trl", f'prompt,chosen,rejected\n"{messages}",c,r\n')
    assert example.prompt == ({"role": "user", "content": "p"},)
    (example,) = read_csv(tmp_path, "odpo", "prompt,text,reward\np,t,1.5\n")
    assert example.responses[0].score == 1.5


def test_csv_numbers_that_are_none():
    with pytest.raises(Unusable, match="missing `x`"):
        Row({"x": "high"}, "f:1", as_text=True).number("x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,chosen,rejected\np,c\n", r"x\.csv:2: this row has another number of cells"),
        ("prompt,chosen,rejected\np,c,r,s\n", r"x\.csv:2: this row has another number of cells"),
        ('prompt,chosen,rejected\np,"c" d,r\n', r"x\.csv:2: malformed CSV"),
    ],
)
def test_broken_csv(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        read_csv(tmp_path, "trl", text)


# ---- the hub -------------------------------------------------------------------------------------------------------


def test_a_configuration_reaches_the_hub(monkeypatch, folder):
    import datasets

    asked = []

    def load_dataset(path, **how):
        asked.append((path, how))
        return datasets.Dataset.from_list([pair("p")])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    report = DataReport()
    Source("trl", path="owner/name", config="preference").examples(report)
    how = {"name": "preference", "data_files": None, "split": "train", "streaming": False}
    assert asked == [("owner/name", how)]
    assert report.of("trl").origin == "hub: owner/name, preference [train]"
    put(folder, "preference/train.jsonl", "edit/train.jsonl")
    assert prompts(folder, config="preference") == ["preference/train.jsonl"]
    with pytest.raises(UserError, match="holds several folders of records: edit, preference; choose one by `config`"):
        prompts(folder)
    with pytest.raises(UserError, match="has no folder `other`"):
        prompts(folder, config="other")


def test_a_stream_is_read_as_far_as_needed(monkeypatch):
    """`datasets` itself makes the stream; it breaks behind the third record."""
    import datasets

    read = []

    def records():
        for i in range(3):
            read.append(i)
            yield pair(f"p{i}")
        raise ConnectionError("the line is dead\nand more")

    def load_dataset(path, streaming, **_):
        assert streaming
        return datasets.IterableDataset.from_generator(records)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = {"name": "trl", "path": "owner/name", "streaming": True}
    assert len(Source(**source, limit=2).examples(DataReport())) == 2 and read == [0, 1]
    with pytest.raises(UserError, match="cannot be read from the hub: ConnectionError: the line is dead\n"):
        Source(**source).examples(DataReport())
