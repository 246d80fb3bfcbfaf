"""An example as text: the prompt, and behind it each response as the chat template writes it."""

import re
from collections.abc import Callable, Sequence

from attrs import evolve, frozen

from upo.data.chat_format import ChatFormat, agreeing, render
from upo.data.example import Example, Message, Response
from upo.data.spelled_out import MARK
from upo.data.templates import Unrenderable, apply_template, template_text

OPENED = re.compile(r"<(\w+)>\s*$")
"""At a prompt's end: a block, such as <think>, that the template opens for the response."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names under which messages hold what was thought before the content; templates read them as one."""
SPELLED = "special token spelled out: read as text (policy.preformatted keeps it a token)"
CLOSED = "response ends with EOS: not closed twice"


@frozen
class Rendered:
    """An example as marked text (`SpelledOut`).

    Example: a user's "Hi" to Gemma is Rendered("<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    (("Hello", 107),), ()), where 107 is <end_of_turn>.
    """

    prompt: str
    responses: tuple[tuple[str, int | None], ...]
    """Each with the token that closes it; None for a response that goes on."""
    notes: tuple[str, ...]
    """What is not written as the data have it, for the report."""


def rendered(form: ChatFormat, example: Example) -> Rendered:
    """Prompt and responses as they stand one behind the other.

    Raises:
        Unrenderable: the template refuses the conversation, leaves out a part of it, or writes another prompt before
            the response than without it.
    """
    bare = [form.unclosed(r.text) for r in example.responses]
    notes = [CLOSED] if any(end is not None for _, end in bare) else []
    prompt = example.prompt
    if isinstance(prompt, str):
        if further := {name for r in example.responses for name in r.message}:
            raise Unrenderable(f"a text prompt has no turn to write `{min(further)}` in")
        start = form.prompt(prompt)
        written = [(form.text(text), end or form.eos) for text, end in bare]
    else:
        turns = form.protected(prompt)
        start = render(form.tokenizer, turns)
        notes += _left_out(turns, start, lambda x: render(form.tokenizer, x), ("tools", "tool_calls"))
        wholes = []
        for response, (text, _) in zip(example.responses, bare, strict=True):
            whole, more = _whole(form, turns, start, evolve(response, text=text))
            wholes.append(whole)
            notes += more
        shared = _shared(form, turns, start, wholes)
        tails = zip((whole[shared:] for whole in wholes), example.responses, strict=True)
        written = [form.closed(tail) if r.complete else (tail, form.eos) for tail, r in tails]
        if only := start[shared:]:
            notes.append(f"prompt cut before {only!r}, which the chat template writes for generation alone "
                         "(policy.template_options, such as enable_thinking: false, may avoid that)")  # fmt: skip
            start = start[:shared]
    if any(MARK in start + text for text, _ in written):
        notes.append(SPELLED)
        for text, _ in written:
            form.check(start + text)
    ends = [end if r.complete else None for r, (_, end) in zip(example.responses, written, strict=True)]
    return Rendered(start, tuple((text, end) for (text, _), end in zip(written, ends, strict=True)), tuple({*notes}))


def _whole(form: ChatFormat, turns: tuple[Message, ...], start: str, response: Response) -> tuple[str, list[str]]:
    """The conversation with its response up to the end of the assistant's turn at least, and notes."""
    begun = turns[-1]["content"] if turns[-1]["role"] == "assistant" else ""
    if not form.tokenizer.chat_template:
        if response.message:
            raise Unrenderable(f"no chat template to write `{min(response.message)}`")
        text = form.spelled.protect(response.text)
        return start + (text if begun else f" {text}"), []
    opening, closing = ("", "") if begun else _block(form, start)
    text = form.spelled.protect(response.text, kept=(opening, closing))
    if closing and closing in text and not response.message:  # the response closes the block that its prompt opens
        end = form.end if response.complete and form.end else ""
        return start + text.strip().removeprefix(opening).lstrip() + end, []

    def written(messages: Sequence[Message]) -> str:
        if response.complete:
            return apply_template(form.tokenizer, messages)
        return apply_template(form.tokenizer, messages, continue_final_message=True)

    message = {"role": "assistant", "content": begun + text} | form.spelled.protect(response.message)
    messages = (*(turns[:-1] if begun else turns), message)
    whole = written(messages)
    if text.strip() not in whole and "".join(text.split()) not in "".join(whole.split()):
        raise Unrenderable("chat template leaves out a part of a response")
    return whole, _left_out(messages, whole, written, ("tool_calls", REASONING[0]), last=True)


def _block(form: ChatFormat, start: str) -> tuple[str, str]:
    """The tags of the block that the template opens at the prompt's end, empty where there is none."""
    found = OPENED.search(start)
    tags = (f"<{found[1]}>", f"</{found[1]}>") if found else ("", "")
    return tags if tags[1] in template_text(form.tokenizer) else ("", "")


def _left_out(
    messages: Sequence[Message],
    written: str,
    write: Callable[[tuple[Message, ...]], str],
    needed: Sequence[str],
    last: bool = False,
) -> list[str]:
    """Notes on what messages hold besides role and content, and the template does not write.

    Args:
        needed: what must not be left out.
        last: look at the last message alone.
    """
    notes = []
    looked_at = messages[-1:] if last else messages
    names = [key for m in looked_at for key, x in m.items() if key not in ("role", "content") and x]
    for name in dict.fromkeys(REASONING[0] if name in REASONING else name for name in names):
        alike = REASONING if name in REASONING else (name,)
        without = tuple({k: x for k, x in m.items() if k not in alike} if m in looked_at else m for m in messages)
        try:
            heard = write(without) != written
        except Unrenderable:
            heard = True
        if not heard and name in needed:
            raise Unrenderable(f"chat template does not write `{name}`")
        if not heard:
            notes.append(f"chat template does not write `{name}`")
    return notes


def _shared(form: ChatFormat, turns: Sequence[Message], start: str, wholes: Sequence[str]) -> int:
    """Characters of the prompt that all responses continue: all, or those before what is for generation alone."""
    if all(whole.startswith(start) for whole in wholes):
        return len(start)
    if turns[-1]["role"] != "assistant":
        shared = _whole_tokens(form, start, min(agreeing(start, whole) for whole in wholes))
        if shared >= _whole_tokens(form, start, agreeing(start, apply_template(form.tokenizer, turns))):
            return shared
    raise Unrenderable("chat template does not continue its own prompt")


def _whole_tokens(form: ChatFormat, text: str, length: int) -> int:
    """The length of a text's beginning, without an added token that it would cut in two."""
    added = re.compile("|".join(map(re.escape, sorted(form.spelled.added, key=len, reverse=True))) or "(?!)")
    cut = (found.start() for found in added.finditer(text) if found.start() < length < found.end())
    return next(cut, length)
