"""ODPO's scored continuations (Amini et al. 2024, https://arxiv.org/abs/2402.10571): sentiment and toxicity."""

from collections.abc import Iterable, Iterator

from upo.data.example import Example, Prompt, Response
from upo.data.lines import Row
from upo.data.report import SourceReport
from upo.data.sources.parts import grouped

CLOSING = tuple(".,;:!?)]}'-/\u2019\u201d\u2026")
"""What stands behind a word without a space."""


def odpo(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
    """One list a prompt from {prompt, text, reward}; plain text that is continued, not a request.

    The texts have lost the space before their first word: it is put back, except before punctuation that follows
    a word directly.
    """
    return grouped(rows, report, _continuation)


def _continuation(row: Row) -> tuple[Prompt, Response]:
    text = row.text("text")
    space = "" if not text.strip() or text.startswith(CLOSING) or text[0].isspace() else " "
    return row.text("prompt"), Response(space + text, score=row.number("reward"))
