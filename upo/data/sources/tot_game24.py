"""Search logs of Tree of Thoughts on the game of 24 (Yao et al. 2023, https://arxiv.org/abs/2305.10601)."""

from collections.abc import Iterable, Iterator

from attrs import evolve

from upo.data.example import Example, Response
from upo.data.lines import Row, Unusable
from upo.data.report import SourceReport
from upo.data.sources.parts import user

TASK = (
    "Use numbers and basic arithmetic operations (+ - * /) to obtain 24. Each step, you are only allowed to choose "
    "two of the remaining numbers to obtain a new number.\nInput: {}"
)


def tot_game24(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
    """One list a depth of the search (four a puzzle): all partial solutions that were weighed against each other.

    The score is the model's own value of a partial solution (sum of three votes of 20 sure, 1 likely, 0.001
    impossible); desirable are those that the search kept, at most five, however low their value.
    """
    for row in rows:
        try:
            depths = [evolve(_depth(step), where=row.where) for step in row.inners("steps")]
            if not depths:
                raise Unusable("no steps")
            yield from depths
        except Unusable as reason:
            report.drop(str(reason), row.where)


def _depth(step: Row) -> Example:
    thoughts, values, kept = (step.items(field) for field in ("new_ys", "values", "select_new_ys"))
    if len(thoughts) != len(values):
        raise Unusable("thoughts and values differ in number")
    records = [Row({"thought": y, "value": v}, step.where) for y, v in zip(thoughts, values, strict=True)]
    return Example(
        user(TASK.format(step.text("x"))),
        tuple(
            Response(r.text("thought").strip(), score=r.number("value"), desirable=r.data["thought"] in kept)
            for r in records
        ),
    )
