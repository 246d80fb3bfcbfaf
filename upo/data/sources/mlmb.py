"""MLMB's morally bad answers to HH questions (https://github.com/mexiQQ/MLMB-SST): undesirable responses alone."""

import re

from upo.data.example import Example, Response
from upo.data.lines import Row, Unusable
from upo.data.sources.parts import Turn, conversation, per_row, split_response

SPEAKER = re.compile(r"(?:^|\s)(You|Friend):")


@per_row
def mlmb(row: Row) -> Example:
    """A question and the dialogue that follows ("You: ... Friend: ... You: ..."); its last turn is the response.

    The label judges the whole dialogue; it is given to the last turn, whose prompt holds the earlier ones.
    """
    label = row.text("morality_label")
    if label not in ("good", "bad"):
        raise Unusable("`morality_label` is neither good nor bad")
    before, *pieces = SPEAKER.split(row.text("response"))
    if before.strip():
        raise Unusable("text before the first turn")
    turns: list[Turn] = [("user", row.text("question"))]
    for who, said in zip(pieces[::2], pieces[1::2], strict=True):
        turns.append(("assistant" if who == "You" else "user", said.strip()))
    prompt, text = split_response(turns)
    return Example(conversation(prompt), (Response(text, desirable=label == "good"),))
