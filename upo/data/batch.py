"""What a method eats: micro-batches with named columns, and the optimizer step that holds them."""

from collections.abc import Mapping
from typing import Any

import torch
from attrs import field, frozen
from jaxtyping import Bool, Int
from torch import Tensor

from upo.data.layout import Movable, Responses
from upo.errors import UserError


@frozen(eq=False)
class Batch(Movable):
    """A micro-batch of units.

    Example: two pairs have four rows, `batch["preferred"]` is [True, False, True, False], counts are
    {"prompts": 2, "responses": 4, "tokens": the sum of their lengths}.
    """

    responses: Responses
    columns: Mapping[str, Tensor] = field(factory=dict)
    """By name, one value an own response [own]: what the view, auxiliary data and `Method.prepare` know of it."""
    own: Bool[Tensor, "N"] | None = None
    """Which rows are the units' own; None: all, there is nothing beside them."""
    mismatched: Responses | None = None
    """Partners' responses behind the units' prompts, in the units' order; None where nobody has a partner."""
    units: int = field(default=-1, kw_only=True)
    """Pairs, lists or labelled prompts; by default one a prompt."""
    dummy: bool = field(default=False, kw_only=True)
    """True where a rank had too little work: the forward runs, nothing counts."""
    global_index: Int[Tensor, "own"] | None = field(default=None, kw_only=True)
    """Where each own response stands among those of the GLOBAL step, however it is cut."""

    def __getitem__(self, column: str) -> Tensor:
        """A column by its name [own].

        Raises:
            UserError: the view gives no such column, and the method has not prepared the data yet.
        """
        if column not in self.columns:
            known = ", ".join(sorted(self.columns)) or "none"
            raise UserError(
                f"batches have no column `{column}` (they have {known}); columns that a method computes before its "
                "first step are there once `trainer.fit` has begun"
            )
        return self.columns[column]

    @property
    def own_rows(self) -> Bool[Tensor, "N"]:
        """Which rows are the units' own responses."""
        lengths = self.responses.lengths
        return torch.ones_like(lengths, dtype=torch.bool) if self.own is None else self.own

    @property
    def preferred(self) -> Bool[Tensor, "own"]:
        """Whether an own response is the chosen, or a desirable one."""
        return self["preferred"]

    @property
    def global_prompt_index(self) -> list[int]:
        """A number for each prompt that is its own in the GLOBAL step: where its first response stands."""
        assert self.global_index is not None, "StepData numbers the responses"
        index = self.responses.prompt_index
        return self.global_index[
            torch.searchsorted(index, torch.arange(len(self.responses.prompt_end)).to(index))
        ].tolist()

    @property
    def counts(self) -> dict[str, int]:
        """What terms of a loss may be averaged over: prompts (a pair is one), own responses, their scored tokens."""
        lengths = self.responses.lengths
        units = len(self.responses.prompt_end) if self.units < 0 else self.units
        if self.own is None:
            return {"prompts": units, "responses": len(lengths), "tokens": len(self.responses.targets)}
        return {"prompts": units, "responses": int(self.own.sum()), "tokens": int(lengths[self.own].sum())}


@frozen(eq=False)
class Step(Movable):
    """One optimizer step: this rank's micro-batches and what the GLOBAL step counts."""

    micro_batches: tuple[Batch, ...]
    counts: dict[str, int]
    """Prompts, responses and response tokens of the whole step, over all ranks."""

    def rows_of(self, batch: Any) -> slice:
        """Where a micro-batch's own responses stand among those of this rank's share, dummies left out."""
        start = 0
        for other in self.micro_batches:
            if other is batch:
                return slice(start, start + batch.counts["responses"])
            start += 0 if other.dummy else other.counts["responses"]
        raise KeyError("a micro-batch of another step")
