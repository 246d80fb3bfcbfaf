"""What the sources share: from records to conversations, pairs and lists."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps

from attrs import evolve

from upo.data.example import Example, Prompt, Response, prompt_key
from upo.data.messages import ROLES as ROLES
from upo.data.messages import conversation as talk
from upo.data.messages import message
from upo.data.records import MEANING
from upo.data.report import SourceReport
from upo.data.row import Row, Unusable

Turn = tuple[str, str]
"""Role as in `ROLES`' values, and what was said."""


def each(rows: Iterable[Row], report: SourceReport, convert: Callable[[Row], Example]) -> Iterator[Example]:
    """One example a record; a record for which `convert` raises `Unusable` is dropped and counted."""
    for row in rows:
        try:
            example = convert(row)
            row.refuse_unread(MEANING)
            yield evolve(example, where=row.where)
        except Unusable as reason:
            report.drop(str(reason), row.where)


def per_row(convert: Callable[[Row], Example]) -> Callable[[Iterable[Row], SourceReport], Iterator[Example]]:
    """Makes a source of a function that turns one record into one example."""

    @wraps(convert)
    def source(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
        return each(rows, report, convert)

    return source


def grouped(
    rows: Iterable[Row], report: SourceReport, convert: Callable[[Row], tuple[Prompt, Response]]
) -> Iterator[Example]:
    """One example a prompt from records of one response each; unusable records are left out of lists and counted."""
    lists: dict[str, tuple[Prompt, str, list[Response]]] = {}
    for row in rows:
        try:
            prompt, response = convert(row)
            row.refuse_unread(MEANING)
        except Unusable as reason:
            report.count(f"{reason}: response left out", row.where)
            continue
        lists.setdefault(prompt_key(prompt), (prompt, row.where, []))[-1].append(response)
    for prompt, where, responses in lists.values():
        yield Example(prompt, tuple(responses), where=where)


def pair(
    prompt: Prompt,
    chosen: str,
    rejected: str,
    *,
    scores: tuple[float | None, float | None] = (None, None),
    soft_label: float | None = None,
) -> Example:
    """A preference between two responses: ranks 0 and 1, the chosen one first."""
    responses = (Response(chosen, rank=0, score=scores[0]), Response(rejected, rank=1, score=scores[1]))
    return Example(prompt, responses, soft_label=soft_label)


def user(text: str) -> Prompt:
    """A conversation of one request."""
    return ({"role": "user", "content": text},)


def conversation(turns: Iterable[Turn]) -> Prompt:
    """A prompt that chat templates can render: perhaps a system turn, then user and assistant in turns, user last.

    Raises:
        Unusable: the turns are not like that, or one is empty.
    """
    return talk([{"role": role, "content": text} for role, text in turns])


def turn(row: Row) -> Turn:
    """A message in either of the usual schemas: {"role", "content"} or ShareGPT's {"from", "value"}.

    Raises:
        Unusable: it holds more than a text, such as a call of a tool.
    """
    said = message(row)
    if further := said.keys() - {"role", "content"}:
        raise Unusable(f"`{row.path}{min(further)}` is not read by this source: leave it out, or write a source")
    return said["role"], said["content"]


def split_response(turns: list[Turn]) -> tuple[list[Turn], str]:
    """The turns before the last one, and what the assistant says in it."""
    if not turns or turns[-1][0] != "assistant":
        raise Unusable("does not end with an assistant turn")
    return turns[:-1], turns[-1][1]
