"""UniEval's Topical-Chat ratings (Mehri and Eskenazi 2020, Zhong et al. 2022, https://arxiv.org/abs/2210.07197)."""

from collections.abc import Iterable, Iterator

from upo.data.example import Example, Prompt, Response
from upo.data.lines import Row
from upo.data.report import SourceReport
from upo.data.sources.parts import grouped, user


def topical_chat(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
    """One list of replies to a dialogue; attributes are all human ratings, the score is "overall" (1..5).

    The fact and the dialogue make one request: half of the dialogues have an even number of turns, so that roles
    could not alternate.
    """
    return grouped(rows, report, _reply)


def _reply(row: Row) -> tuple[Prompt, Response]:
    turns = [line.strip() for line in row.text("source").split("\n") if line.strip()]
    scores = row.inner("scores")
    ratings = {name: scores.number(name) for name in scores.data}
    prompt = user("\n".join([row.text("context").strip(), "", *turns]))
    return prompt, Response(row.text("system_output"), score=scores.number("overall"), attributes=ratings)
