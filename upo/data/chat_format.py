"""How a tokenizer writes prompts, and what ends a response.

Where the tokenizer has a chat template, the template is asked: a response ends with the special token that closes an
assistant's turn, which need not be EOS (Gemma's turns end with <end_of_turn>, those of ChatML with <|im_end|>). EOS
closes a response where the template writes no such token.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from upo.data.example import Message, Prompt
from upo.data.spelled_out import MARK, SpelledOut
from upo.data.templates import PREFORMATTED, Unrenderable, apply_template, options_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TURNS = {"system": "{}\n\n", "user": "\n\nHuman: {}", "assistant": "\n\nAssistant: {}"}
"""How a conversation is written where the tokenizer has no chat template: the format of Anthropic's HH."""


def render(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> str:
    """The text that the policy sees before a response begins.

    A string is taken as it is; a conversation goes through the tokenizer's chat template, or, without one,
    through `PLAIN_TURNS` with "Assistant:" at its end. A last turn of the assistant is left open, to be continued.

    Raises:
        Unrenderable: the conversation cannot be written so.
    """
    if isinstance(prompt, str):
        return prompt
    begun = prompt[-1]["role"] == "assistant"
    if tokenizer.chat_template:
        ask = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
        return apply_template(tokenizer, prompt, **ask)
    if strange := {m["role"] for m in prompt} - PLAIN_TURNS.keys():
        raise Unrenderable(f"no chat template to write the role `{min(strange)}`")
    turns = "".join(PLAIN_TURNS[m["role"]].format(m["content"]) for m in prompt)
    return turns if begun else turns + "\n\nAssistant:"


def agreeing(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences have in common from their beginnings on."""
    return next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))


class ChatFormat:
    """The format of one tokenizer. Its texts are marked (`SpelledOut`): special tokens in them are the template's."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer, self.spelled = tokenizer, SpelledOut(tokenizer)
        self.eos: int = tokenizer.eos_token_id  # type: ignore[assignment]

    @property
    def fingerprint(self) -> tuple[Any, ...]:
        """Equal for tokenizers of one vocabulary that write all conversations alike."""
        return str(self.tokenizer.chat_template), options_of(self.tokenizer), self.end, self.eos, self.preformatted

    @property
    def preformatted(self) -> bool:
        """Whether special tokens that text prompts and their responses spell out are control tokens."""
        return bool(self.tokenizer.init_kwargs.get(PREFORMATTED))

    @cached_property
    def end(self) -> str | None:
        """The special token that closes an assistant's turn; None where the template, or the lack of one, writes none.

        It is the last one that the template writes behind a turn whether or not the user goes on: what else a
        conversation ends with (Phi-3's <|endoftext|> behind <|end|>) is no part of the turn.
        """
        if not self.tokenizer.chat_template:
            return None
        user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good-morrow"}

        def behind(*turns: Message, **how: bool) -> list[str]:
            written = apply_template(self.tokenizer, turns, **how).partition(answer["content"])[2]
            return self.spelled.pattern.findall(written)

        try:
            last = behind(user, answer)
            within = behind(user, answer, user, add_generation_prompt=True)
        except Unrenderable:
            return None
        shared = last[: agreeing(last, within)] or last[:1]
        return shared[-1] if shared else None

    @property
    def stops(self) -> set[int]:
        """Token ids that end a response: EOS, and what closes a turn."""
        return {self.eos} | ({self.id(self.end)} if self.end else set())

    def id(self, token: str) -> int:
        """Of a token by its name."""
        return self.tokenizer.convert_tokens_to_ids(token)  # type: ignore[return-value]

    # ---- prompts -----------------------------------------------------------------------------------------------

    def prompt(self, prompt: Prompt) -> str:
        """What the policy sees before a response begins.

        Raises:
            Unrenderable: the template refuses it, or special tokens spelled out in it cannot be read as text.
        """
        if isinstance(prompt, str):
            bos = self.tokenizer.bos_token or ""
            head = bos if prompt.startswith(bos) else ""  # a text may bring its BOS
            text = head + self.text(prompt.removeprefix(head))
        else:
            text = render(self.tokenizer, self.protected(prompt))
        self.check(text)
        return text

    def writes(self, prompt: Prompt) -> bool:
        """Whether the prompt can be written."""
        try:
            self.prompt(prompt)
        except Unrenderable:
            return False
        return True

    def text(self, text: str) -> str:
        """A text that goes through no template."""
        return text if self.preformatted else self.spelled.protect(text)

    def protected(self, turns: Sequence[Message]) -> tuple[Message, ...]:
        """A conversation whose contents hold no special token."""
        return tuple(self.spelled.protect(m) | {"role": m["role"]} for m in turns)

    def check(self, text: str) -> None:
        """Raises `Unrenderable` where the tokenizer reads a spelling in marked text as the token itself."""
        if MARK in text and self.spelled.ids(text) is None:
            raise Unrenderable("special token spelled out that this tokenizer cannot read as text")

    # ---- ends of responses -------------------------------------------------------------------------------------

    def unclosed(self, text: str) -> tuple[str, int | None]:
        """A response without the token that closes it, where its text brings one; and that token."""
        for token in filter(None, (self.tokenizer.eos_token, self.end)):
            if (bare := text.rstrip()).endswith(token):
                return bare.removesuffix(token), self.id(token)
        return text, None

    def closed(self, written: str) -> tuple[str, int]:
        """What is scored of a turn as the template writes it, and the token that closes it."""
        if self.end and self.end in written:
            return written[: written.rindex(self.end)], self.id(self.end)
        found = list(self.spelled.pattern.finditer(written))
        if found and not written[found[-1].end() :].strip():  # a call of a tool may end in its own way
            return written[: found[-1].start()], self.id(found[-1][0])
        return written, self.eos
