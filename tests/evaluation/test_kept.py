"""What is kept survives a killed process, torn lines and other owners."""

from pathlib import Path

import pytest

from upo.evaluation.kept import Kept


def test_items_survive_and_owners_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "kept.jsonl"
    mine, other = Kept(file, "mine"), Kept(file, "other")
    mine["a"] = {"x": [1, 2]}
    other["a"] = "not mine"
    mine.update({"b": None, "a": "newer"})
    again = Kept(file, "mine")
    assert dict(again) == {"a": "newer", "b": None}
    assert dict(Kept(file, "other")) == {"a": "not mine"}
    assert dict(Kept(tmp_path / "none", "mine")) == {}


def test_a_torn_line_counts_as_not_written(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    Kept(file, "mine").update({"a": 1, "b": 2})
    file.write_bytes(file.read_bytes()[:-5])
    again = Kept(file, "mine")
    assert dict(again) == {"a": 1}
    again["b"] = 3
    assert dict(Kept(file, "mine")) == {"a": 1, "b": 3}
    with pytest.raises(TypeError, match="not taken back"):
        del again["a"]
