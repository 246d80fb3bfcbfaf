"""Tests that take turns: over the days of a round each of them runs, in the suites that it should."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import rotation


class Item:
    """What `put_off` reads and writes of a collected test."""

    def __init__(self, case: str, *marks: Any):
        self.nodeid, self.marks = f"tests/test_x.py::test_y[{case}]", list(marks)

    def get_closest_marker(self, name: str) -> Any:
        return next((mark for mark in self.marks if mark.name == name), None)

    def add_marker(self, mark: Any) -> None:
        self.marks.append(mark)


@pytest.mark.parametrize("days", [1, 2, 3, 6])
@pytest.mark.parametrize("slow", [False, True])
def test_each_case_has_its_turn(days: int, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = SimpleNamespace(name="turns", args=(days,))
    found: dict[str, Counter[str]] = {case: Counter() for case in "abcd"}
    for day in range(days):
        monkeypatch.setattr(rotation, "DAY", 739_000 + day)
        items = [Item(case, turns, *([pytest.mark.slow] if slow else [])) for case in found]
        rotation.put_off(items)  # type: ignore[arg-type]
        for case, item in zip(found, items, strict=True):
            names = {mark.name for mark in item.marks}
            found[case]["nightly" if "nightly" in names else "slow" if "slow" in names else "default"] += 1
    own = {"slow": 1} if slow else {"default": 1, "slow": min(1, days - 1)}
    wanted = Counter(own) + Counter({"nightly": days - sum(own.values())})
    assert all(+counts == wanted for counts in found.values()), found
