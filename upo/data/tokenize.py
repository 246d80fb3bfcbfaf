"""From an example to token ids: the one place that decides BOS and where the response begins.

Prompt and response are tokenised as two pieces, so that all responses of a prompt share its ids and training sees
the prompt exactly as generation does. The pieces are then compared with the whole text tokenised at once, and
differences are counted in the data report.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attrs import evolve, frozen

from upo.data.chat_format import ChatFormat
from upo.data.control import control_of
from upo.data.example import Example, Prompt
from upo.data.rendering import Rendered, rendered
from upo.data.report import DataReport
from upo.data.spelled_out import MARK
from upo.data.templates import Unrenderable
from upo.data.token_cache import TokenCache
from upo.data.units import Unit
from upo.errors import UserError, hub_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overlong = Literal["drop", "truncate_prompt_left", "truncate_response", "error"]

PLAIN = "text prompt: continued as it is, without the chat template (options: {chat: true} of trl and sft uses it)"
ANCHORS = ("\n", ".", "x")
"""Text that keeps a tokenizer's own space off the response behind it: the first that does not merge with it."""

BOTH_LONG = "too long because prompt and response both are: with data.max_response below data.max_length both are cut"


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a hub name or local folder, or what the function at an import path returns."""
    module, _, function = name.rpartition(".")
    if module and "/" not in name and not Path(name).exists():
        try:
            return getattr(importlib.import_module(module), function)()
        except ModuleNotFoundError:
            pass  # a hub name with a dot in it
    from transformers import AutoTokenizer

    with hub_errors(name, "tokenizer"):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


class Encoder:
    """Turns examples into token ids for one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", cache: Path | None = None):
        """
        Args:
            cache: folder that keeps the tokens of large lists of texts; null keeps none.
        """
        self.tokenizer, self.cache = tokenizer, cache and TokenCache(cache, tokenizer)
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no EOS token: a policy could never learn to stop; set `eos_token` in it")
        self.bos = tokenizer.bos_token_id if tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id] else None
        self.eos, self.format = tokenizer.eos_token_id, ChatFormat(tokenizer)
        self.control = control_of(tokenizer)
        apart = [i for text in ("a", "b") for i in self._ids([text])[0]]
        # SentencePiece-like tokenizers put a space before every text; an anchor keeps it off the response.
        self.anchor = "" if tokenizer.decode(apart) == "ab" else ANCHORS[0]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        def encode(texts: Sequence[str]) -> list[list[int]]:
            return self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids  # type: ignore[return-value]

        plain = [text for text in texts if MARK not in text]
        found = iter(self.cache.ids(plain, encode) if self.cache else encode(plain)) if plain else iter(())
        return [self._spelled(text) if MARK in text else next(found) for text in texts]

    def _spelled(self, text: str) -> list[int]:
        if (ids := self.format.spelled.ids(text)) is None:
            raise UserError(f"a special token is spelled out where it cannot be read as text: {text[:100]!r}")
        return ids

    @property
    def stops(self) -> set[int]:
        """Token ids that end a response: EOS, and what closes a turn."""
        return self.format.stops

    def prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Prompt ids with exactly one BOS where the model wants one, and the control token of generation.

        Raises:
            Unrenderable: the chat template refuses a prompt.
        """
        return self._prompt_ids([self.format.prompt(p) for p in prompts], [self.control] * len(prompts))

    def _prompt_ids(self, texts: Sequence[str], controls: Sequence[str | None]) -> list[list[int]]:
        ids = self._ids(texts)
        if self.bos is not None:
            ids = [x if x[:1] == [self.bos] else [self.bos, *x] for x in ids]
        return [
            x if c is None else [*x, self.tokenizer.convert_tokens_to_ids(c)]
            for x, c in zip(ids, controls, strict=True)
        ]

    def responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Response ids of texts as data have them, each closed by EOS."""
        return [[*ids, self.eos] for ids in self._behind([self.format.text(text) for text in texts])]

    def _behind(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of marked texts that stand behind another one."""
        found = self._ids(texts)
        if not self.anchor:
            return found
        left = list(range(len(texts)))
        for anchor in ANCHORS:
            start = self._ids([anchor])[0]
            unfit = []
            for i, ids in zip(left, self._ids([anchor + texts[i] for i in left]), strict=True):
                if ids[: len(start)] == start:
                    found[i] = ids[len(start) :]
                else:
                    unfit.append(i)
            left = unfit
        return found

    def encode(self, examples: Sequence[Example], report: DataReport) -> list[Unit | None]:
        """Token ids of examples, in order; None for what cannot be rendered, which is counted.

        Responses that are not `complete` lack the token that closes the others.
        """
        kept: list[tuple[int, Example, Rendered]] = []
        for place, example in enumerate(examples):
            try:
                written = rendered(self.format, example)
            except Unrenderable as refusal:
                report.drop(example.source, refusal.reason, example.where)
                continue
            if isinstance(example.prompt, str) and self.tokenizer.chat_template and not self.format.preformatted:
                report.note(example.source, PLAIN, example.where)
            for note in written.notes:
                report.count(example.source, note, example.where)
            kept.append((place, example, written))
        controls = [example.control or self.control for _, example, _ in kept]
        starts = [written.prompt for _, _, written in kept]
        prompts = self._prompt_ids(starts, controls)
        starts = [start + (control or "") for start, control in zip(starts, controls, strict=True)]
        bodies = iter(self._behind([text for _, _, written in kept for text, _ in written.responses]))
        whole = iter(self._ids([s + t for s, (_, _, w) in zip(starts, kept, strict=True) for t, _ in w.responses]))
        units: list[Unit | None] = [None] * len(examples)
        for prompt, (place, example, written) in zip(prompts, kept, strict=True):
            mine = [(next(bodies), next(whole), end) for _, end in written.responses]
            if not prompt:
                report.drop(example.source, "prompt without any token", example.where)
                continue
            start = prompt[1:] if prompt[:1] == [self.bos] and mine[0][1][:1] != [self.bos] else prompt
            if any([*start, *body] != both for body, both, _ in mine):
                report.count(example.source, "tokens differ from the whole text's at the response's start")
            responses = tuple(body if end is None else [*body, end] for body, _, end in mine)
            units[place] = Unit.of(prompt, responses, example)
        return units


@frozen
class Limits:
    """How long units may be, and what happens to longer ones."""

    max_length: int
    """Prompt and response, in tokens."""
    max_response: int
    """A response alone, in tokens."""
    overlong: Sequence[Overlong]
    """Tried in this order."""
    bos: int | None
    """The token that stays at a cut prompt's beginning."""


def truncate(unit: Unit, limits: Limits, report: DataReport) -> Unit | None:
    """Applies the overlong policies in order until prompt and responses fit; None where the unit is dropped.

    One decision for all responses of a prompt. A response is never cut to nothing, and a cut one carries no EOS.
    """
    source = unit.example.source
    prompt, responses = unit.prompt, unit.responses
    max_length, max_response = limits.max_length, limits.max_response
    altered: list[str] = []

    def fits() -> bool:
        longest = max(map(len, responses))
        return longest <= max_response and len(prompt) + longest <= max_length

    for policy in limits.overlong:
        if fits():
            break
        longest = max(map(len, responses))
        if policy == "error":
            raise UserError(
                f"{source}: {len(prompt)} prompt + {longest} response tokens do not fit into max_length={max_length}, "
                f"max_response={max_response}; raise them or set data.overlong"
            )
        if policy == "truncate_prompt_left":
            room = max_length - min(longest, max_response)
            if len(prompt) > room >= 2:
                head = prompt[:1] if limits.bos is not None else []
                prompt = [*head, *prompt[len(prompt) - room + len(head) :]]
                altered.append("prompt cut on the left")
        elif policy == "truncate_response":
            room = min(max_response, max_length - len(prompt))
            if room >= 1:
                responses = tuple(r[:room] for r in responses)
                altered.append("response cut, no EOS")
        else:
            break
    if not fits():
        report.drop(source, "too long", unit.example.where)
        if {"truncate_prompt_left", "truncate_response"} <= set(limits.overlong) and len(prompt) >= max_length - 1:
            report.note(source, BOTH_LONG, unit.example.where)
        return None
    for what in altered:
        report.count(source, what)
    group = evolve(unit.groups[0], prompt=prompt, responses=responses)
    return evolve(unit, groups=(group, *unit.groups[1:]))
