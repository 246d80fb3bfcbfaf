"""OpenAssistant conversation trees (Köpf et al. 2023, https://arxiv.org/abs/2304.07327): ranked lists.

Trees as in the released *_trees.jsonl.gz, or one message a record as in OpenAssistant/oasst1 and oasst2 on the hub.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from upo.data.example import Example, Response
from upo.data.lines import Row, Unusable
from upo.data.report import SourceReport
from upo.data.sources.parts import Turn, conversation, turn

Replies = Callable[[Row], list[Row]]


def oasst(rows: Iterable[Row], report: SourceReport, *, language: str | None = None) -> Iterator[Example]:
    """One list a user message that people ranked replies to; the conversation up to it is the prompt.

    Args:
        language: keep replies in this language alone, e.g. "en"; by default all.
    """
    messages: list[Row] = []
    for row in rows:
        if "message_id" in row:
            messages.append(row)
            continue
        try:
            root = row.inner("prompt")
        except Unusable as reason:
            report.drop(str(reason), row.where)
            continue
        lost = report.dropped.total()
        lists = list(_lists(root, _nested, report, language))
        if not lists and report.dropped.total() == lost:
            report.drop("no message with replies", row.where)
        yield from lists
    yield from _forest(messages, report, language)


def _forest(messages: list[Row], report: SourceReport, language: str | None) -> Iterator[Example]:
    """The ranked lists of trees whose messages came one by one; those in no tree are counted."""
    known: dict[str, Row] = {}
    children: dict[str | None, list[Row]] = defaultdict(list)
    for message in messages:
        try:
            name = message.text("message_id")
            parent = message.text("parent_id") if "parent_id" in message else None
        except Unusable as reason:
            report.drop(str(reason), message.where)
            continue
        if name in known:
            report.drop("message_id given twice", message.where)
            continue
        known[name] = message
        children[parent].append(message)
    orphans = [m for parent in children if parent is not None and parent not in known for m in children[parent]]
    for orphan in orphans:
        report.drop("message without its parent", orphan.where)
    seen = {orphan.text("message_id") for orphan in orphans}

    def replies(message: Row) -> list[Row]:
        seen.add(message.text("message_id"))
        return children[message.text("message_id")]

    for root in children[None]:
        lost = report.dropped.total()
        lists = list(_lists(root, replies, report, language))
        if not lists and report.dropped.total() == lost:
            report.drop("no message with replies", root.where)
        yield from lists
    for name, message in known.items():
        if name not in seen:
            report.drop("message below itself, or below one that is left out", message.where)


def _nested(message: Row) -> list[Row]:
    return message.inners("replies") if "replies" in message else []


def _lists(root: Row, replies: Replies, report: SourceReport, language: str | None) -> Iterator[Example]:
    """The ranked lists below a message, top down."""
    stack: list[tuple[Row, list[Turn]]] = [(root, [])]
    while stack:
        message, before = stack.pop()
        try:
            answers = replies(message)
            said = _turn(message)
            stack += [(answer, [*before, said]) for answer in reversed(answers)]
            if answers and said[0] == "user":
                asked = conversation([*before, said])
                yield Example(asked, _ranked(answers, report, language), where=message.where)
        except Unusable as reason:
            report.drop(str(reason), message.where)


def _ranked(answers: list[Row], report: SourceReport, language: str | None) -> tuple[Response, ...]:
    wanted = [a for a in answers if language is None or a.text("lang") == language]
    if not wanted:
        raise Unusable(f"replies are not in `{language}`")
    ranked = [a for a in wanted if "rank" in a]
    if len(ranked) < 2:
        raise Unusable("fewer than two ranked replies")
    if len(ranked) < len(answers):
        report.count("unranked or foreign reply left out", answers[0].where, len(answers) - len(ranked))
    return tuple(Response(_turn(a)[1], rank=a.number("rank")) for a in ranked)


def _turn(message: Row) -> Turn:
    """OpenAssistant says {"role", "text"}."""
    return turn(Row({"role": message.data.get("role"), "content": message.data.get("text")}, message.where))
