"""Files and folders are complete or not there."""

import ast
import json
import os
from pathlib import Path

import pytest

from upo.runtime import atomic_files
from upo.runtime.atomic_files import partial_of, put_in_place, write_json, write_text, written_at_once

ROOT = Path(__file__).parent.parent.parent


def make(path: Path, kind: str, content: str) -> None:
    """A file, a folder with a file, or a link to a folder."""
    if kind == "file":
        path.write_text(content)
    elif kind == "folder":
        path.mkdir()
        (path / content).touch()
    elif kind == "link":
        (path.parent / "elsewhere").mkdir()
        path.symlink_to("elsewhere")


def content_of(path: Path) -> str:
    return path.read_text() if path.is_file() else ",".join(sorted(os.listdir(path)))


@pytest.mark.parametrize("before", ["nothing", "file", "folder", "link"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_new_takes_the_place_of_what_was(kind: str, before: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    make(path, before, "old")
    with written_at_once(path) as partial:
        make(partial, kind, "new")
        assert (content_of(path) if path.exists() else "") in ("", "old"), "untouched until the end"
    assert content_of(path) == "new" and not path.is_symlink()
    assert set(os.listdir(tmp_path)) <= {"a", "elsewhere"}


@pytest.mark.parametrize("before", ["nothing", "file", "folder"])
@pytest.mark.parametrize("kind", ["nothing", "file", "folder"])
def test_a_failure_leaves_what_was(kind: str, before: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    make(path, before, "old")
    with pytest.raises(KeyboardInterrupt), written_at_once(path) as partial:
        make(partial, kind, "torn")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ([] if before == "nothing" else ["a"])
    assert before == "nothing" or content_of(path) == "old"


@pytest.mark.parametrize("torn", ["file", "folder"])
def test_what_a_kill_left_is_replaced(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a"
    path.parent.mkdir()
    make(partial_of(path), torn, "torn")
    write_text(path, "whole")
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["a"]


def test_two_writers_of_a_shared_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with written_at_once(path, shared=True) as first, written_at_once(path, shared=True) as second:
        assert first != second
        first.write_text("x")
        second.write_text("x")
    assert path.read_text() == "x" and os.listdir(tmp_path) == ["a"]


def test_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    monkeypatch.setattr(atomic_files, "sync", lambda path: events.append(("sync", path.read_text())))
    monkeypatch.setattr(atomic_files, "put_in_place", lambda partial, path: events.append(("name", path.name)))
    with written_at_once(tmp_path / "a", synced=True) as partial:
        partial.write_text("x")
    assert events == [("sync", "x"), ("name", "a")]


def test_a_file_is_never_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("new")
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        assert target.read_text() == "old"
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    put_in_place(tmp_path / "b", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "new"


def test_json_has_an_item_a_line(tmp_path: Path) -> None:
    values = {"a": {"b": 1, "c": []}, "rows": [{"x": 1.5}, {"x": None}], "ä": "ö"}
    write_json(tmp_path / "a.json", values)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == values
    assert text.splitlines()[5:8] == ['  "rows": [', '    {"x": 1.5},', '    {"x": null}']


def test_nobody_else_renames_partial_files() -> None:
    for file in (ROOT / "upo").rglob("*.py"):
        if file.name != "atomic_files.py":
            texts = [x.value for x in ast.walk(ast.parse(file.read_text())) if isinstance(x, ast.Constant)]
            assert not [x for x in texts if isinstance(x, str) and x.endswith((".partial", ".tmp"))], file
