"""Tests that take turns: each day a share of them runs in the suite that they belong to.

The shares go by the date, so that all have run after a few days; the rest of a day waits for a longer suite.
"""

import datetime
from collections.abc import Iterable
from typing import Any

import pytest

DAY = datetime.date.today().toordinal()


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
