"""Tests that take turns: each day a share of them runs in the suite that they belong to.

The shares go by the date, so that all have run after a few days; the rest of a day waits for a longer suite.
UPO_TEST_DAY, a number, stands for another date.
"""

import datetime
import os
from collections.abc import Iterable
from typing import Any
from zlib import crc32

import pytest

DAY = int(os.environ.setdefault("UPO_TEST_DAY", str(datetime.date.today().toordinal())))  # one for all workers


def taking_turns(
    values: Iterable[Any], days: int = 3, suite: Any = (), rest: Any = pytest.mark.slow, always: Iterable[str] = ()
) -> list[Any]:
    """The values as parameters of a test, those of another day with the mark of a longer suite.

    Args:
        values: plain ones, or what `pytest.param` makes.
        days: after so many, each has had its turn.
        suite: marks of those whose turn it is; none is the default suite.
        rest: mark of the others.
        always: ids, or texts of the values, of those whose turn it is each day.
    """
    result = []
    for i, value in enumerate(values):
        given = value if isinstance(value, type(pytest.param())) else pytest.param(value)
        today = i % days == DAY % days or (given.id or str(value)) in always
        result.append(pytest.param(*given.values, id=given.id, marks=suite if today else rest))
    return result


def put_off(items: Iterable[pytest.Item]) -> None:
    """Tests marked `turns(days)` have one turn in so many days, and those of the default suite one in the slow suite.

    The day after its turn in the default suite a test has one in the slow suite. On all other days it waits for the
    night, as slow ones do on all but their own. The cases of one test take turns among themselves.
    """
    seen: dict[str, int] = {}
    for item in items:
        if mark := item.get_closest_marker("turns"):
            test = item.nodeid.partition("[")[0]
            place = seen[test] = seen.get(test, crc32(test.encode())) + 1
            if day := (place + DAY) % mark.args[0]:
                short = item.get_closest_marker("slow") is None
                item.add_marker(pytest.mark.slow if short and day == 1 else pytest.mark.nightly)
