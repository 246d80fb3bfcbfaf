"""What the sources share: from records to conversations, pairs and lists."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps

from attrs import evolve

from upo.data.example import Example, Prompt, Response, prompt_key
from upo.data.lines import Row, Unusable
from upo.data.report import SourceReport

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""The role that the names found in data stand for."""

Turn = tuple[str, str]
"""Role as in `ROLES`' values, and what was said."""


def each(rows: Iterable[Row], report: SourceReport, convert: Callable[[Row], Example]) -> Iterator[Example]:
    """One example a record; a record for which `convert` raises `Unusable` is dropped and counted."""
    for row in rows:
        try:
            yield evolve(convert(row), where=row.where)
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
    lists: dict[str, tuple[Prompt, list[Response]]] = {}
    for row in rows:
        try:
            prompt, response = convert(row)
        except Unusable as reason:
            report.count(f"{reason}: response left out", row.where)
            continue
        lists.setdefault(prompt_key(prompt), (prompt, []))[1].append(response)
    for prompt, responses in lists.values():
        yield Example(prompt, tuple(responses))


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
    turns = list(turns)
    roles = [role for role, _ in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not all(text.strip() for _, text in turns):
        raise Unusable("empty turn in the prompt")
    if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(spoken)):
        raise Unusable("turns of the prompt do not alternate")
    if spoken[-1:] != ["user"]:
        raise Unusable("prompt does not end with a user turn")
    return tuple({"role": role, "content": text} for role, text in turns)


def turn(row: Row) -> Turn:
    """A message in either of the usual schemas: {"role", "content"} or ShareGPT's {"from", "value"}."""
    role, content = ("from", "value") if "from" in row else ("role", "content")
    name = row.text(role)
    if name not in ROLES:
        raise Unusable(f"unknown role `{name}`")
    return ROLES[name], row.text(content)


def split_response(turns: list[Turn]) -> tuple[list[Turn], str]:
    """The turns before the last one, and what the assistant says in it."""
    if not turns or turns[-1][0] != "assistant":
        raise Unusable("does not end with an assistant turn")
    return turns[:-1], turns[-1][1]
