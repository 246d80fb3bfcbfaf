"""The preference formats of TRL (https://huggingface.co/docs/trl/dataset_formats): pairs or labels."""

from itertools import takewhile

from upo.data.example import Example, Prompt, Response
from upo.data.lines import Row, Unusable
from upo.data.sources.parts import Turn, conversation, pair, per_row, split_response, turn


@per_row
def trl(row: Row) -> Example:
    """{prompt, chosen, rejected}, {chosen, rejected} with the prompt in both, or {prompt, completion, label}.

    Each field is a text or a list of messages. An implicit prompt is what both texts begin with, up to the last
    white space (TRL cuts inside a word), or all messages but the last.
    """
    if "completion" in row:
        prompt, text = _prompt_and_response(row, "completion")
        return Example(prompt, (Response(text, desirable=row.flag("label")),))
    if not isinstance(row.data.get("chosen"), list) and "prompt" not in row:
        return _implicit(row.text("chosen"), row.text("rejected"))
    prompt, chosen = _prompt_and_response(row, "chosen")
    other_prompt, rejected = _prompt_and_response(row, "rejected")
    if prompt != other_prompt:
        raise Unusable("prompts of chosen and rejected differ")
    return pair(prompt, chosen, rejected)


def _prompt_and_response(row: Row, field: str) -> tuple[Prompt, str]:
    if not isinstance(row.data.get(field), list):
        return row.text("prompt"), row.text(field)
    # with a text as `prompt`, as in ultrafeedback_binarized, the messages are the whole conversation
    before = _turns(row, "prompt") if isinstance(row.data.get("prompt"), list) else []
    turns, text = split_response(before + _turns(row, field))
    return conversation(turns), text


def _turns(row: Row, field: str) -> list[Turn]:
    return [turn(message) for message in row.inners(field)]


def _implicit(chosen: str, rejected: str) -> Example:
    shared = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))]
    end = max((i for i, character in enumerate(shared) if character.isspace()), default=0)
    return pair(chosen[:end], chosen[end:], rejected[end:])
