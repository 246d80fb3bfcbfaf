"""Nectar (Zhu et al. 2023, https://starling.cs.berkeley.edu): seven responses a prompt, ranked by GPT-4.

Hub: berkeley-nest/Nectar.
"""

from upo.data.example import Example, Response
from upo.data.row import Row, Unusable
from upo.data.sources.hh import TURN
from upo.data.sources.parts import ROLES, conversation, per_row


@per_row
def nectar(row: Row) -> Example:
    """One list a prompt, which is a dialogue of Human and Assistant; rank 1 is the best."""
    before, *pieces = TURN.split(row.text("prompt"))
    turns = [(ROLES[who.lower()], said.strip()) for who, said in zip(pieces[::2], pieces[1::2], strict=True)]
    if before.strip() or not turns or turns[-1] != ("assistant", ""):
        raise Unusable("`prompt` is no dialogue that ends with an Assistant turn")
    answers = row.inners("answers")
    ranks = [a.number("rank") for a in answers]
    responses = (Response(a.text("answer").strip(), rank=r - min(ranks)) for a, r in zip(answers, ranks, strict=True))
    return Example(conversation(turns[:-1]), tuple(responses))
