"""Records of the usual formats: which column is the prompt, which the responses, what else changes their meaning.

One reader for TRL's, LLaMA-Factory's, swift's and plain SFT's records. Columns that it needs have their usual names, or
those that a source's options give them.
"""

import re
from collections.abc import Sequence

from attrs import evolve, frozen

from upo.data.example import Example, Message, Prompt, Response, as_text
from upo.data.messages import answered, conversation, messages_in, tools_in
from upo.data.row import Row, Unusable

TALKS = ("messages", "conversations")
"""Columns with whole conversations."""
REQUESTS = ("question", "instruction", "query", "input")
"""Columns whose text is a user's request."""
ANSWERS = ("completion", "response", "output", "answer")
LABELS = ("label", "kto_tag")
BESIDE = (*REQUESTS, "context", "history", "passage", "document")
"""Columns that are part of what was asked."""
MEANING = (
    "system", "system_prompt", "tools", "functions", "tool_calls", "function_call", "reasoning_content", "thinking",
    "documents", "image", "images", "video", "videos", "audio", "audios",
)  # fmt: skip
"""Columns that change what a record means: one that is not read costs the record."""
MARK, ASKED = (
    re.compile(
        rf"(?:^|\n)[#*\s]*(?:{words})\s*:\**|<\|?(?:im_start\|>|start_of_turn>)?(?:{tokens})\|?>?\s*"
        rf"|(?:{tokens})<\|(?:end_header_id|end_of_role)\|>\s*|{more}",
        re.IGNORECASE,
    )
    for words, tokens, more in (
        (
            "assistant|response|answer|gpt|bot|ai|a",
            "assistant|model",
            r"\[/INST\]|<\uff5cAssistant\uff5c>|<\|CHATBOT_TOKEN\|>",
        ),
        ("human|user|question|instruction|prompter|q", "user", r"\[INST\]|<\uff5cUser\uff5c>|<\|USER_TOKEN\|>"),
    )
)
"""Where a turn of an assistant, and one of a user, begins in a text."""
NO_PROMPT = "no prompt: the texts do not share one; name its column by options: {prompt: NAME}"


@frozen
class Names:
    """Columns by the part that they play; null: the usual names."""

    prompt: str | None = None
    chosen: str = "chosen"
    rejected: str = "rejected"
    completion: str | None = None
    label: str | None = None
    system: str | None = None
    tools: str | None = None
    chat: bool = False
    """Whether text prompts are requests of a user."""


def example_of(row: Row, names: Names) -> Example:
    """A pair, or one response with or without a label; its prompt a text or a conversation.

    Raises:
        Unusable: a column is missing or of another kind, or one that changes the meaning would not be read.
    """
    if names.chosen in row or names.rejected in row or "rejected_response" in row or "rejected_messages" in row:
        made = _pair(row, names)
    else:
        whole = _whole(row, names)
        field = whole or names.completion or _first(row, ANSWERS)
        if field is None:
            raise Unusable(f"missing `{names.chosen}`")
        prompt, response = _complete(row, names, field, None if whole else _prompt_of(row, names))
        made = Example(prompt, (evolve(response, desirable=_label(row, names)),))
    _check_beside(row, made.prompt)
    row.refuse_unread(MEANING)
    return made


def prompt_of(row: Row, names: Names) -> Prompt:
    """The prompt of a record without responses."""
    before = _prompt_of(row, names)
    if before is None:
        field = names.prompt or _first(row, TALKS)
        before = messages_in(row, field) if field else None
    if before is None:
        raise Unusable(f"missing `{names.prompt or 'prompt'}`")
    prompt = _finished(row, names, before)
    _check_beside(row, prompt)
    row.refuse_unread(MEANING)
    return prompt


def _first(row: Row, fields: Sequence[str]) -> str | None:
    """The first of these columns that holds something, or else that the record has at all."""
    return next((f for f in fields if f in row), next((f for f in fields if row.has(f)), None))


def _whole(row: Row, names: Names) -> str | None:
    """The column of a conversation that ends with the answer, or of one where nothing else could hold the answer."""
    field = names.prompt or _first(row, TALKS)
    turns = messages_in(row, field) if field else None
    if turns and turns[-1]["role"] == "assistant":
        return field
    return field if names.prompt is None and _first(row, ANSWERS) is None else None


def _pair(row: Row, names: Names) -> Example:
    before = _prompt_of(row, names)
    chosen, rejected = names.chosen, names.rejected
    if rejected not in row and ("rejected_response" in row or "rejected_messages" in row):  # swift's
        rejected = "rejected_response" if "rejected_response" in row else "rejected_messages"
        if chosen not in row and (talk := _first(row, TALKS)):
            prompt, good = _complete(row, names, talk, None)
            turns = answered(messages_in(row, talk) or [])[0]
            other, bad = _complete(row, names, rejected, turns)
            return _preference(prompt, other, good, bad)
    if before is None and not _is_talk(row, chosen) and not _is_talk(row, rejected):
        return _implicit(row, names)
    if isinstance(before, str) and _is_talk(row, chosen) != _is_talk(row, rejected):
        before = [{"role": "user", "content": before}]
    prompt, good = _complete(row, names, chosen, before)
    other, bad = _complete(row, names, rejected, before)
    return _preference(prompt, other, good, bad)


def _preference(prompt: Prompt, other: Prompt, good: Response, bad: Response) -> Example:
    if prompt != other:
        raise Unusable("prompts of chosen and rejected differ")
    return Example(prompt, (evolve(good, rank=0), evolve(bad, rank=1)))


def _prompt_of(row: Row, names: Names) -> list[Message] | str | None:
    """What stands before the answers; None where they bring it along."""
    field = names.prompt or next((f for f in ("prompt", *TALKS) if f in row), None)
    if field is None:
        asked = [f for f in REQUESTS[:3] if f in row and row.text(f).strip()] or [f for f in ("input",) if f in row]
        if not asked:
            return None
        text = row.text(asked[0])
        if asked[0] == "instruction" and "input" in row and row.text("input").strip():
            text = f"{text}\n\n{row.text('input')}"
        return [*_history(row), {"role": "user", "content": text}]
    turns = messages_in(row, field)
    if turns is not None:
        return turns
    text = row.text(field)
    return [{"role": "user", "content": text}] if field in REQUESTS else text


def _history(row: Row) -> list[Message]:
    """Earlier turns as LLaMA-Factory's Alpaca format has them: [question, answer] each."""
    if "history" not in row:
        return []
    said = row.items("history")
    if not all(isinstance(x, list) and len(x) == 2 and all(isinstance(t, str) for t in x) for x in said):
        raise Unusable("`history` holds something that is no question with its answer")
    return [{"role": r, "content": t} for turn in said for r, t in zip(("user", "assistant"), turn, strict=True)]


def _is_talk(row: Row, field: str) -> bool:
    return messages_in(row, field) is not None


def _complete(row: Row, names: Names, field: str, before: list[Message] | str | None) -> tuple[Prompt, Response]:
    """Prompt and response from an answer's column: a text behind the prompt, or messages that may hold the prompt."""
    turns = messages_in(row, field)
    if turns is None:
        response = Response(row.text(field))
        if before is None:
            raise Unusable(f"missing `{names.prompt or 'prompt'}`")
        if field not in (names.chosen, names.rejected):
            thoughts = [row.text(f) for f in ("reasoning_content", "thinking") if f in row and row.text(f).strip()]
            if thoughts:
                response = evolve(response, message={"reasoning_content": thoughts[0]})
                before = [{"role": "user", "content": before}] if isinstance(before, str) else before
        return _finished(row, names, before), response
    said, response = answered(turns)
    if isinstance(before, str):  # messages that go on behind a text, or that hold it, as in ultrafeedback_binarized
        before = [] if any(m["role"] == "user" for m in said) else [{"role": "user", "content": before}]
    before = before or []
    whole = said if before and said[: len(before)] == before else [*before, *said]
    return _finished(row, names, whole), response


def _finished(row: Row, names: Names, before: list[Message] | str) -> Prompt:
    """The prompt with the system text and the tools that stand in columns of their own."""
    field = names.system or _first(row, ("system", "system_prompt"))
    system = row.text(field) if field and (field in row or not row.has(field)) else ""
    tools = [t for name in (names.tools or "tools", "functions") for t in tools_in(row, name)]
    if isinstance(before, str):
        if not names.chat and not tools and not (field and row.has(field)):
            return before
        before = [{"role": "user", "content": before}]
    if system.strip():
        first = before[0] if before and before[0]["role"] == "system" else None
        if first and first["content"].strip() not in ("", system.strip()):
            raise Unusable(f"two system texts: `{field}` and the conversation's own system turn")
        before = [{"role": "system", "content": system}, *(before[1:] if first else before)]
    if tools and before:
        before = [before[0] | {"tools": tools}, *before[1:]]
    return conversation(before)


def _label(row: Row, names: Names) -> bool | None:
    """Thumbs up or down; None where the records have no such column."""
    field = names.label or _first(row, LABELS)
    return row.label(field) if field and (names.label or row.has(field)) else None


def _implicit(row: Row, names: Names) -> Example:
    """A pair of texts that both begin with their prompt.

    The prompt ends where the last turn of an assistant begins that both have. Without turns it is what the texts share
    up to the last white space, if that is most of both.
    """
    chosen, rejected = row.text(names.chosen), row.text(names.rejected)
    length = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = chosen[: min(len(chosen), len(rejected)) if length is None else length]
    marks = list(MARK.finditer(shared))
    if marks:
        end = marks[-1].end()
        if ASKED.search(shared, end):
            raise Unusable("prompts of chosen and rejected differ")
    else:
        sentences = [f for f, x in row.data.unread().items() if isinstance(x, str) and len(x.split()) > 2]
        if sentences:
            raise Unusable(f"no prompt column is known; if `{sentences[0]}` is it: options: {{prompt: {sentences[0]}}}")
        if 2 * len(shared) < max(len(chosen), len(rejected)):
            raise Unusable(NO_PROMPT)
        end = max((i for i, character in enumerate(shared) if character.isspace()), default=0)
    return _preference(chosen[:end], rejected[:end], Response(chosen[end:]), Response(rejected[end:]))


def _check_beside(row: Row, prompt: Prompt) -> None:
    """Raises `Unusable` where something that was asked is no part of the prompt."""
    asked = "".join(as_text(prompt).split())
    for name, value in row.data.unread().items():
        if name in BESIDE and "".join(str(value).split()) not in asked:
            raise Unusable(
                f"`{name}` is not read beside the prompt: name the prompt's column by options: {{prompt: NAME}}"
            )
