"""HANNA (Chhun et al. 2022, https://arxiv.org/abs/2208.11646): stories rated by people on six criteria."""

from collections.abc import Iterable, Iterator
from statistics import fmean

from upo.data.example import Example, Prompt, Response
from upo.data.lines import Row
from upo.data.report import SourceReport
from upo.data.sources.parts import grouped, user

CRITERIA = ("relevance", "coherence", "empathy", "surprise", "engagement", "complexity")


def hanna(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
    """One list of stories a prompt; attributes are the six ratings (1..5), the score is their mean."""
    return grouped(rows, report, _story)


def _story(row: Row) -> tuple[Prompt, Response]:
    ratings = {criterion: row.number(criterion) for criterion in CRITERIA}
    return user(row.text("prompt")), Response(row.text("story"), score=fmean(ratings.values()), attributes=ratings)
