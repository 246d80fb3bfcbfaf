"""The record of the project: one prompt with K annotated responses.

Every source yields `Example`s; pairs, labels and lists are views of them (`upo.data.batch`).
Absent annotations are None or missing keys, never a made-up value.
"""

import json
from typing import Any, TypeAlias

from attrs import evolve, field, frozen

Message: TypeAlias = dict[str, Any]
"""One turn of a conversation: {"role": "system" | "user" | "assistant", "content": text}, and what else a chat template
reads of it, such as `reasoning_content` or `tool_calls`. The first one may hold `tools`: a list of functions."""

Prompt: TypeAlias = str | tuple[Message, ...]
"""Either text that the response continues as it is, or a conversation that a chat template renders.

A conversation that ends with an assistant's turn is continued inside of that turn."""


@frozen
class Response:
    """One response with whatever is known about it."""

    text: str
    rank: float | None = None
    """Place in the preference order of its prompt, 0 is best; equal ranks are a tie."""
    desirable: bool | None = None
    """Unpaired label: thumbs up (True) or down (False)."""
    score: float | None = None
    """Overall quality, any scale, higher is better."""
    attributes: dict[str, float] = field(factory=dict)
    """Named human or model ratings that came with the data, e.g. {"coherence": 3.7}."""
    rewards: dict[str, float] = field(factory=dict)
    """Named auxiliary rewards, measured once by `upo.rewards` before training, e.g. {"safety": 0.98}."""
    complete: bool = True
    """False where the text goes on behind it (one step of a solution): then no EOS is scored."""
    message: dict[str, Any] = field(factory=dict)
    """What the turn holds besides its text, for the chat template, e.g. {"reasoning_content": "17 * 24 is ..."}."""

    @property
    def shown(self) -> str:
        """The text with all that the turn holds besides it: what rewards, judges and readers see."""
        return said(self.text, self.message)


@frozen
class Example:
    """One prompt with K responses (K >= 1)."""

    prompt: Prompt
    responses: tuple[Response, ...]
    soft_label: float | None = None
    """Probability in [0, 1] that responses[0] is preferred to responses[1] (votes); pairs only."""
    rationale: str | None = None
    """Why the better response is better, in words."""
    control: str | None = None
    """A token between prompt and responses that says what kind of response follows (CSFT); set by batch types."""
    user: str | None = None
    """Who gave the preference, where the data says so."""
    source: str = ""
    """Name of the data source, for counts and per-source metrics; `source/part` where a source has parts."""
    where: str = field(default="", eq=False)
    """File and line that it was read from, where that is known, for the data report."""

    def with_responses(self, responses: tuple[Response, ...]) -> "Example":
        return evolve(self, responses=responses)


def prompt_key(prompt: Prompt) -> str:
    """A string that is equal for equal prompts: what "the same prompt" means for splits and partners."""
    if isinstance(prompt, str):
        return prompt
    return "\x1e".join("\x1f".join((m["role"], m["content"] or "", *_further(m))) for m in prompt)


def _further(message: Message) -> list[str]:
    """What a message holds besides role and content, as one text; nothing where it holds no more."""
    further = {key: x for key, x in message.items() if key not in ("role", "content")}
    return [json.dumps(further, sort_keys=True, default=str)] if further else []


def as_text(prompt: Prompt) -> str:
    """A prompt as a reader wants it: turns on lines of their own, each behind its role, and the tools before them."""
    if isinstance(prompt, str):
        return prompt
    tools = [f"tools: {json.dumps(m['tools'], ensure_ascii=False, default=str)}" for m in prompt if m.get("tools")]
    return "\n".join([*tools, *(f"{m['role']}: {said(m['content'] or '', m)}" for m in prompt)])


def said(text: str, message: Message) -> str:
    """A turn as a reader wants it: what was thought before the text, and the tools that are called behind it.

    Example: said("Sure.", {"tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}) is
    'Sure.\\n<tool_call>{"name": "clock", "arguments": {}}</tool_call>'.
    """
    thought = message.get("reasoning_content")
    calls = [
        json.dumps(call.get("function", call), ensure_ascii=False, default=str)
        for call in message.get("tool_calls") or ()
    ]
    parts = [f"<think>{thought}</think>"] * bool(thought) + [text] * bool(text or not calls)
    return "\n".join([*parts, *(f"<tool_call>{call}</tool_call>" for call in calls)])
