"""Special tokens that users or responses spell out (`<|im_end|>`, `</s>`): they are read as text and control nothing.

A text is protected before a template writes it: each spelling becomes a mark of Unicode noncharacters, which nobody
takes for a token. Where marked text becomes ids, the spellings are put back and encoded as ordinary text, in one piece
with what stands around them, and only those special tokens stay tokens that the template wrote itself.
"""

import copy
import re
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK, END, TOKEN, TOKEN_END = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
"""Around the number of a spelling, and of a special token that a template wrote."""
MARKED = re.compile(f"{MARK}(\\d+){END}")


class SpelledOut:
    """One tokenizer's special tokens, as tokens and as text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self.added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        special = {content for content, token in self.added.items() if token.special}
        self.names = sorted(special | set(tokenizer.all_special_tokens), key=lambda name: (-len(name), name))
        """The special tokens, long ones first: of two that begin alike the longer one is meant."""
        self.pattern = re.compile("|".join(map(re.escape, self.names)) or "(?!)")
        self.places = {name: i for i, name in enumerate(self.names)}

    def protect(self, value: Any, kept: Collection[str] = ()) -> Any:
        """A text with marks in place of special tokens; lists and mappings with all texts in them protected.

        Args:
            kept: special tokens that stay what they are.
        """
        if isinstance(value, str):
            return self.pattern.sub(lambda found: self._mark(found[0], kept), value)
        if isinstance(value, dict):
            return {key: self.protect(inner, kept) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect(inner, kept) for inner in value]
        return value

    def _mark(self, name: str, kept: Collection[str]) -> str:
        return name if name in kept else f"{MARK}{self.places[name]}{END}"

    def shown(self, text: str) -> str:
        """Marked text as it reads."""
        return MARKED.sub(lambda found: self.names[int(found[1])], text)

    def ids(self, text: str) -> list[int] | None:
        """Token ids of marked text, without BOS; None where this tokenizer can only read a spelling as the token."""
        tokenizer, ids_of = self._twin
        named = self.pattern.sub(lambda found: f"{TOKEN}{self.places[found[0]]}{TOKEN_END}", text)
        plain = self.shown(named)
        if MARK in plain or TOKEN in text:  # a mark that a template has cut in two, or a text that brings its own
            return None
        ids = tokenizer(plain, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        control = {i for name, i in tokenizer.get_added_vocab().items() if name in self.places}
        if control - {tokenizer.unk_token_id} & set(ids):
            return None
        return [ids_of.get(i, i) for i in ids]

    @cached_property
    def _twin(self) -> tuple[Any, dict[int, int]]:
        """A tokenizer that splits special tokens and knows second names of them instead, and what those names mean.

        The names have the habits of the tokens (white space that these swallow), so that all else is cut as ever.
        """
        from transformers import AddedToken

        twin, ids_of = copy.deepcopy(self.tokenizer), {}
        habits = ("lstrip", "rstrip", "single_word", "normalized")
        for name, i in self.places.items():
            known = self.added.get(name)
            same = {habit: getattr(known, habit) for habit in habits} if known else {"normalized": False}
            twin.add_tokens([AddedToken(f"{TOKEN}{i}{TOKEN_END}", special=False, **same)])
            number = twin.convert_tokens_to_ids(f"{TOKEN}{i}{TOKEN_END}")
            ids_of[number] = self.tokenizer.convert_tokens_to_ids(name)
        return twin, ids_of
