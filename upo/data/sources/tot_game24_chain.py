"""Chains of thought that a tree search found, against what it left aside (Zhang et al. 2024, arXiv 2406.09136)."""

from collections.abc import Iterable, Iterator

from attrs import evolve

from upo.data.example import Example, Response
from upo.data.lines import Row, Unusable
from upo.data.report import SourceReport
from upo.data.sources.parts import user
from upo.data.sources.tot_game24 import TASK


def tot_game24_chain(rows: Iterable[Row], report: SourceReport, solved: bool = True) -> Iterator[Example]:
    """For each thought on the way to a final answer: it is chosen, its siblings off every such way are rejected.

    One example a parent; its responses are the thoughts so far, one a line, and differ in the last line alone. The
    score is the search's own value, put from [0, 60] (three votes of 20 sure, 1 likely, 0.001 impossible) to [-1, 1].

    Args:
        solved: only answers that are right show the way (40 of 62 puzzles have one); otherwise all that were kept.
    """
    for row in rows:
        try:
            thoughts = list(_puzzle(row, solved))
            if not thoughts:
                raise Unusable("no thought beside one that leads to an answer")
            yield from (evolve(example, where=row.where) for example in thoughts)
        except Unusable as reason:
            report.drop(str(reason), row.where)


def _puzzle(row: Row, solved: bool) -> Iterator[Example]:
    found = _records(row, "ys", "infos")
    answers = [y.text("first") for y in found if not solved or y.inner("second").number("r")]
    if not answers:
        raise Unusable("no right answer found")
    steps = row.inners("steps")
    for depth, step in enumerate(steps, start=1):
        families: dict[str, dict[str, Response]] = {}
        for record in _records(step, "new_ys", "values"):
            text, value = record.text("first"), record.number("second")
            parent, _, thought = text.strip().rpartition("\n")
            if text.strip().count("\n") == depth - 1:  # otherwise the new thought is empty
                rank = int(not any(answer.startswith(text) for answer in answers))
                known = {"score": min(value / 30 - 1, 1.0), "complete": depth == len(steps)}
                families.setdefault(parent, {}).setdefault(thought, Response(text.strip(), rank=rank, **known))
        for siblings in families.values():
            if len({r.rank for r in siblings.values()}) == 2:
                yield Example(user(TASK.format(step.text("x"))), tuple(siblings.values()))


def _records(row: Row, first: str, second: str) -> list[Row]:
    left, right = row.items(first), row.items(second)
    if len(left) != len(right):
        raise Unusable(f"`{first}` and `{second}` differ in number")
    return [Row({"first": a, "second": b}, row.where) for a, b in zip(left, right, strict=True)]
