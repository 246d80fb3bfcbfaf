"""Where text stops: drafts become units of token ids. Policies of other media will have codecs of their own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from upo.data.report import DataReport
from upo.data.token_cache import TokenCache
from upo.data.tokenize import Encoder, Limits, truncate
from upo.data.units import Draft, DraftGroup, Group, Unit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextCodec:
    """A tokenizer's way from drafts to units."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", cache: Path | None = None):
        """
        Args:
            cache: folder that keeps the tokens of large lists of texts; None keeps none.
        """
        self.tokenizer, self.encoder = tokenizer, Encoder(tokenizer, cache)

    @property
    def bos(self) -> int | None:
        """The token that every prompt begins with, where there is one."""
        return self.encoder.bos

    @property
    def pad_id(self) -> int:
        """Fills rows up; any id would do."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.tokenizer.eos_token_id  # type: ignore[return-value]

    @property
    def fingerprint(self) -> tuple[Any, ...]:
        """Equal for tokenizers that make the same ids of all texts and conversations."""
        known = TokenCache(Path(), self.tokenizer).fingerprint
        return known or str(id(self.tokenizer)), *self.encoder.format.fingerprint

    def encode(self, drafts: Sequence[Draft], limits: Limits, report: DataReport) -> list[Unit | None]:
        """Units in the order of the drafts; None for one that was dropped, which the report counts with its reason."""
        owned = self.encoder.encode([draft.example for draft in drafts], report)
        return [unit and self._unit(unit, draft, limits, report) for unit, draft in zip(owned, drafts, strict=True)]

    def _unit(self, unit: Unit, draft: Draft, limits: Limits, report: DataReport) -> Unit | None:
        """The own group cut to its limits, with its columns and the further groups; all of them fit, or none stays."""
        if (made := truncate(unit, limits, report)) is None:
            return None
        made = evolve(made, columns=draft.columns)
        for further in draft.further:
            if (group := self._further(made, further, limits, report)) is None:
                return None
            made = made.with_group(group)
        return made

    def _further(self, unit: Unit, draft: DraftGroup, limits: Limits, report: DataReport) -> Group | None:
        if draft.responses is None:  # the same ids again: they are not cut another time
            (prompt,) = self.encoder.prompts([draft.prompt])
            made: Unit | None = Unit.of(prompt, unit.responses, unit.example)
            kept = [how for how in limits.overlong if how != "truncate_response"]
            limits = evolve(limits, overlong=kept)
        else:
            example = evolve(unit.example, prompt=draft.prompt, responses=draft.responses)
            (made,) = self.encoder.encode([example], report)
        made = made and truncate(made, limits, report)
        return made and evolve(made.groups[0], role=draft.role)
