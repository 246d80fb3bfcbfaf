"""From an example to token ids: the one place that decides BOS, EOS and where the response begins.

Prompt and response are tokenised as two pieces, so that all responses of a prompt share its ids and training sees
the prompt exactly as generation does. The pieces are then compared with the whole text tokenised at once, and
differences are counted in the data report.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attrs import evolve, frozen

from upo.data.control import control_of
from upo.data.example import Example, Prompt
from upo.data.report import DataReport
from upo.data.token_cache import TokenCache
from upo.data.units import Unit
from upo.errors import UserError, hub_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overlong = Literal["drop", "truncate_prompt_left", "truncate_response", "error"]

PLAIN_TURNS = {"system": "{}\n\n", "user": "\n\nHuman: {}", "assistant": "\n\nAssistant: {}"}
"""How a conversation is written where the tokenizer has no chat template: the format of Anthropic's HH."""

ANCHORS = ("\n", ".", "x")
"""Text that keeps a tokenizer's own space off the response behind it: the first that does not merge with it."""


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


def render(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> str:
    """The text that the policy sees before a response begins.

    A string is taken as it is; a conversation goes through the tokenizer's chat template, or, without one,
    through `PLAIN_TURNS` with "Assistant:" at its end. A last turn of the assistant is left open, to be continued.
    """
    if isinstance(prompt, str):
        return prompt
    begun = _begun(prompt)
    if tokenizer.chat_template:
        ask: dict[str, bool] = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
        return tokenizer.apply_chat_template(list(prompt), tokenize=False, **ask)  # type: ignore[return-value]
    turns = "".join(PLAIN_TURNS[m["role"]].format(m["content"]) for m in prompt)
    return turns if begun else turns + "\n\nAssistant:"


def _begun(prompt: Prompt) -> str:
    """What the assistant has said already in the turn that the response continues."""
    return "" if isinstance(prompt, str) or prompt[-1]["role"] != "assistant" else prompt[-1]["content"]


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
        self.eos = tokenizer.eos_token_id
        self.control = control_of(tokenizer)
        apart = [i for text in ("a", "b") for i in self._ids([text])[0]]
        # SentencePiece-like tokenizers put a space before every text; an anchor keeps it off the response.
        self.anchor = "" if tokenizer.decode(apart) == "ab" else ANCHORS[0]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        def encode(texts: Sequence[str]) -> list[list[int]]:
            return self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids  # type: ignore[return-value]

        if not texts:
            return []
        return self.cache.ids(texts, encode) if self.cache else encode(texts)

    def prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Prompt ids with exactly one BOS where the model wants one, and the control token of generation."""
        return self._prompt_ids([render(self.tokenizer, p) for p in prompts], [self.control] * len(prompts))

    def _prompt_ids(self, texts: Sequence[str], controls: Sequence[str | None]) -> list[list[int]]:
        ids = self._ids(texts)
        if self.bos is not None:
            ids = [x if x[:1] == [self.bos] else [self.bos, *x] for x in ids]
        return [
            x if c is None else [*x, self.tokenizer.convert_tokens_to_ids(c)]
            for x, c in zip(ids, controls, strict=True)
        ]

    def response_text(self, prompt: Prompt, start: str, response: str, complete: bool = True) -> str | None:
        """The response as it stands behind the rendered prompt, up to and without EOS or, if not complete, turn's end.

        None where the chat template does not render the conversation as a continuation of the prompt.

        Args:
            start: the rendered prompt.
        """
        if isinstance(prompt, str):
            return response
        begun = _begun(prompt)
        if not self.tokenizer.chat_template:
            return response if begun else " " + response
        turns = (*(prompt[:-1] if begun else prompt), {"role": "assistant", "content": begun + response})
        if complete:
            whole: str = self.tokenizer.apply_chat_template(list(turns), tokenize=False)  # type: ignore[assignment]
        else:
            whole = render(self.tokenizer, turns)
        if not whole.startswith(start):
            return None
        text = whole[len(start) :]
        end = text.rfind(self.tokenizer.eos_token)  # what templates write behind the end of a turn is not scored
        return text if end < 0 else text[:end]

    def responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Response ids, each closed by EOS."""
        if not self.anchor:
            return [[*ids, self.eos] for ids in self._ids(texts)]
        found = self._ids(texts)
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
        return [[*ids, self.eos] for ids in found]

    def encode(self, examples: Sequence[Example], report: DataReport) -> list[Unit | None]:
        """Token ids of examples, in order; None for what cannot be rendered or would end too early: it is counted.

        Responses that are not `complete` lose the EOS that closes the others.
        """
        kept: list[Example] = []
        places: list[int] = []
        starts: list[str] = []
        texts: list[str] = []
        for place, example in enumerate(examples):
            if any(self.tokenizer.eos_token in r.text for r in example.responses):
                report.drop(example.source, "EOS spelled out in a response")
                continue
            start = render(self.tokenizer, example.prompt)
            rendered = [self.response_text(example.prompt, start, r.text, r.complete) for r in example.responses]
            if any(text is None for text in rendered):
                report.drop(example.source, "chat template does not continue its own prompt")
                continue
            kept.append(example)
            places.append(place)
            starts.append(start)
            texts += rendered  # type: ignore[arg-type]
        controls = [e.control or self.control for e in kept]
        prompts, responses = self._prompt_ids(starts, controls), self.responses(texts)
        starts = [start + (control or "") for start, control in zip(starts, controls, strict=True)]
        owners = [i for i, e in enumerate(kept) for _ in e.responses]
        whole = self._ids([starts[i] + t for i, t in zip(owners, texts, strict=True)])
        units: list[Unit | None] = [None] * len(examples)
        i = 0
        for place, example, prompt in zip(places, kept, prompts, strict=True):
            mine = slice(i, i + len(example.responses))
            i = mine.stop
            if not prompt:
                report.drop(example.source, "prompt without any token")
                continue
            start = prompt[1:] if prompt[:1] == [self.bos] and whole[mine][0][:1] != [self.bos] else prompt
            if any(start + r[:-1] != w for r, w in zip(responses[mine], whole[mine], strict=True)):
                report.count(example.source, "tokens differ from the whole text's at the response's start")
            scored = (
                ids if r.complete else ids[:-1] for ids, r in zip(responses[mine], example.responses, strict=True)
            )
            units[place] = Unit.of(prompt, tuple(scored), example)
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
        report.drop(source, "too long")
        return None
    for what in altered:
        report.count(source, what)
    group = evolve(unit.groups[0], prompt=prompt, responses=responses)
    return evolve(unit, groups=(group, *unit.groups[1:]))
