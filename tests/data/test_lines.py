"""The line reader: what is a line, what is a record, and what an error says."""

import gzip
import json
from pathlib import Path

import pytest

from upo.data.lines import Row, Unusable, local_rows
from upo.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def records(path: Path, files: str | None = None) -> list[dict]:
    return [row.data for row in local_rows(path, files)]


RECORDS = [{"a": "one"}, {"a": "zwei \u00fc", "b": [1, None]}]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.json.gz"])
def test_json_kinds(tmp_path, name):
    content = LINES if "jsonl" in name else json.dumps(RECORDS)
    assert records(write(tmp_path / name, content)) == RECORDS


def test_one_object_is_one_record(tmp_path):
    assert records(write(tmp_path / "x.json", '{"post": {"rewards": [1]}}')) == [{"post": {"rewards": [1]}}]


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["p", "q"], "chosen": [[{"role": "user", "content": "c"}]] * 2})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    rows = list(local_rows(tmp_path / "x.parquet"))
    assert [r.data["prompt"] for r in rows] == ["p", "q"]
    assert rows[1].data["chosen"] == [{"role": "user", "content": "c"}]
    assert rows[1].where.endswith("x.parquet: record 2")


@pytest.mark.parametrize("separator", ["\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1e", "\r"])
def test_only_newline_ends_a_line(tmp_path, separator):
    # strict JSON escapes control characters; the others may stand in a string as they are
    content = separator if separator in "\x85\u2028\u2029" else f"\\u{ord(separator):04x}"
    path = write(tmp_path / "x.jsonl", f'{{"a": "left{content}right"}}\n{{"a": "next"}}\n')
    assert records(path) == [{"a": f"left{separator}right"}, {"a": "next"}]


def test_real_next_line_character_survives(shared):
    rows = records(shared / "data" / "scored" / "odpo_imdb_sentiment_reward.jsonl.gz")
    assert len(rows) == 1380
    assert sum(r["text"].count("\x85") + r["prompt"].count("\x85") for r in rows) == 3


def test_windows_line_ends_blank_lines_and_byte_order_mark(tmp_path):
    path = write(tmp_path / "x.jsonl", b'\xef\xbb\xbf{"a": "1"}\r\n\r\n  \n{"a": "2"}')
    rows = list(local_rows(path))
    assert [r.data["a"] for r in rows] == ["1", "2"]
    assert [r.where for r in rows] == [f"{path}:1", f"{path}:4"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": 2,}\n', r"x\.jsonl:2: malformed JSON: .* at character 9"),
        ("x.jsonl.gz", '{"a": 1}\n\n{"a": 2', r"x\.jsonl\.gz:3: malformed JSON"),
        ("x.jsonl", '{"a": 1}\n[1, 2]\n', r"x\.jsonl:2: a record must be a JSON object, not a list"),
        ("x.json", '[{"a": 1},\n {"a": }]', r"x\.json: malformed JSON: Expecting value at character 8 of line 2"),
        ("x.json", '[{"a": 1}, 7]', r"x\.json: record 2: a record must be a JSON object, not a int"),
        ("x.jsonl", b'{"a": "good"}\n{"a": "\xff"}\n', r"x\.jsonl:2: not UTF-8 at byte 7"),
        ("x.txt", "hello", r"x\.txt: unknown kind of file; known: \.jsonl"),
        ("x.parquet", "hello", r"x\.parquet: not a readable Parquet file"),
    ],
)
def test_errors_name_file_and_line(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        records(write(tmp_path / name, content))


def test_broken_gzip(tmp_path):
    whole = gzip.compress(LINES.encode() * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "plain.jsonl.gz").write_text(LINES)
    for name in ("cut.jsonl.gz", "plain.jsonl.gz"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read"):
            records(tmp_path / name)


def test_folder_is_read_in_order_of_names(tmp_path):
    for name in ("b.jsonl", "a.json", "c.jsonl.gz"):
        write(tmp_path / name, json.dumps({"a": name}))
    write(tmp_path / "README.md", "no data")
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "d.jsonl", '{"a": "d"}')
    assert [r["a"] for r in records(tmp_path)] == ["a.json", "b.jsonl", "c.jsonl.gz"]
    assert [r["a"] for r in records(tmp_path, "*/*.jsonl")] == ["d"]
    with pytest.raises(UserError, match=r"no \.jsonl.* file matches `files: \*\.csv`"):
        records(tmp_path, "*.csv")


def test_typed_fields():
    row = Row(
        {"t": "text", "n": 2, "yes": True, "none": None, "deep": {"score": 1.5}, "list": [{"x": 1}], "mixed": [1]},
        "f:1",
    )
    assert row.text("t") == "text" and row.number("n") == 2.0 and row.flag("yes") is True
    assert row.inner("deep").number("score") == 1.5
    assert [r.number("x") for r in row.inners("list")] == [1.0]
    assert "t" in row and "none" not in row and "absent" not in row


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda r: r.text("absent"), "missing `absent`"),
        (lambda r: r.text("none"), "missing `none`"),
        (lambda r: r.text("yes"), "`yes` is bool, not text"),
        (lambda r: r.number("yes"), "`yes` is bool, not number"),
        (lambda r: r.number("t"), "`t` is str, not number"),
        (lambda r: r.number("nan"), "`nan` is nan"),
        (lambda r: r.flag("one"), "`one` is int, not true or false"),
        (lambda r: r.inner("deep").text("score"), "missing `deep.score`"),
        (lambda r: r.inners("list"), "`list` holds something that is not an object"),
        (lambda r: r.text("half"), "`half` is not valid Unicode"),
    ],
)
def test_wrong_fields_are_named(read, message):
    data = {
        "none": None,
        "yes": True,
        "t": "x",
        "nan": float("nan"),
        "one": 1,
        "deep": {},
        "list": [1],
        "half": "\ud83d",
    }
    with pytest.raises(Unusable) as caught:
        read(Row(data, "f:1"))
    assert str(caught.value) == message
