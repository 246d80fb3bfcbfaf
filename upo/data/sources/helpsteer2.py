"""HelpSteer and HelpSteer2 (Wang et al. 2024, https://arxiv.org/abs/2406.08673): responses rated by people.

Hub: nvidia/HelpSteer2, nvidia/HelpSteer.
"""

import re
from collections.abc import Iterable, Iterator

from upo.data.example import Example, Prompt, Response
from upo.data.report import SourceReport
from upo.data.row import Row, Unusable
from upo.data.sources.parts import ROLES, conversation, grouped

RATINGS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
"""Where a further turn begins in a prompt of several."""


def helpsteer2(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
    """One list a prompt; attributes are the five ratings (0..4), the score is helpfulness."""
    return grouped(rows, report, _rated)


def _rated(row: Row) -> tuple[Prompt, Response]:
    ratings = {name: row.number(name) for name in RATINGS}
    response = Response(row.text("response"), score=ratings["helpfulness"], attributes=ratings)
    asked = row.text("prompt") if "prompt" in row else row.text("instruction")
    first, *further = TURN.split(asked)
    if "<extra_id_" in "".join((first, *further)):
        raise Unusable("a mark of a turn that is not known in the prompt")
    turns = [
        ("user", first),
        *((ROLES[who.lower()], said) for who, said in zip(further[::2], further[1::2], strict=True)),
    ]
    if turns[-1][0] == "assistant" and not turns[-1][1].strip():
        turns.pop()
    return conversation(turns), response
