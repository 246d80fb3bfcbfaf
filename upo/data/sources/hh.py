"""Anthropic's helpful and harmless dialogues (Bai et al. 2022, https://arxiv.org/abs/2204.05862): pairs.

Hub: Anthropic/hh-rlhf, with `files: "helpful-base/train.jsonl.gz"` for one part.
"""

import re

from upo.data.example import Example
from upo.data.lines import Row, Unusable
from upo.data.sources.parts import ROLES, conversation, pair, per_row

TURN = re.compile(r"\n\n(Human|Assistant):")


@per_row
def hh(row: Row) -> Example:
    """Pairs of dialogues that differ in the last Assistant turn; everything before it is the prompt."""
    prompt, chosen = _split(row.text("chosen"))
    other_prompt, rejected = _split(row.text("rejected"))
    if prompt != other_prompt:
        raise Unusable("prompts of chosen and rejected differ")
    before, *pieces = TURN.split(prompt)
    if before.strip():
        raise Unusable("text before the first turn")
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return pair(conversation((ROLES[who.lower()], said.strip()) for who, said in turns), chosen, rejected)


def _split(dialogue: str) -> tuple[str, str]:
    prompt, _, response = dialogue.rpartition("\n\nAssistant:")
    if "\n\nHuman:" in response:
        raise Unusable("ends with a Human turn")
    return prompt, response.strip()
