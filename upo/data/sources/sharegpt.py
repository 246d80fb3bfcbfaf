"""LLaMA-Factory's ShareGPT formats (https://github.com/hiyouga/LLaMA-Factory/tree/main/data): pairs or labels."""

from upo.data.example import Example, Response
from upo.data.lines import Row
from upo.data.sources.parts import conversation, pair, per_row, split_response, turn


@per_row
def sharegpt(row: Row) -> Example:
    """A conversation with `chosen` and `rejected` messages, or one whose last message has a `label` (or `kto_tag`).

    Messages are {"from", "value"} or {"role", "content"}, in `conversations` or `messages`; `system` may stand apart.
    """
    turns = [turn(message) for message in row.inners("conversations" if "conversations" in row else "messages")]
    if "system" in row and row.text("system"):
        turns.insert(0, ("system", row.text("system")))
    if "chosen" in row or "rejected" in row:
        chosen, rejected = (split_response([turn(row.inner(field))])[1] for field in ("chosen", "rejected"))
        return pair(conversation(turns), chosen, rejected)
    before, text = split_response(turns)
    label = row.flag("kto_tag" if "kto_tag" in row else "label")
    return Example(conversation(before), (Response(text, desirable=label),))
