"""One side of a round, indexed by optimizer steps."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from attrs import evolve
from torch.utils.data import Dataset

from upo.data.batch import Batch, Step
from upo.data.layout import Layout, Responses, collate_responses
from upo.data.rounds import Split
from upo.data.samplers import StepPlan
from upo.data.units import Group, Unit

REFERENCE_LOGPS = "reference_logps"
"""Column of all rows: log-probs under the reference, in nats, where they are known before training."""


class StepData(Dataset[Step]):
    """Units of one split; indexing by a `StepPlan` gives the `Step`."""

    def __init__(
        self, split: Split, *, layout: Layout, tokens_per_microbatch: int, pad_id: int, rewards: Sequence[str] = ()
    ):
        """
        Args:
            rewards: columns that a batch's `responses.rewards` hold, in this order.
        """
        self.split, self.rewards = split, tuple(rewards)
        self.layout: Layout = layout
        self.row_tokens, self.pad_id = tokens_per_microbatch, pad_id

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.split.units

    def __len__(self) -> int:
        return len(self.split)

    def cost(self, index: int) -> int:
        """Input tokens of a unit in the chosen layout; partners' responses, which cost no backward pass, left out."""
        unit = self.units[index]
        return unit.cost if self.layout == "packed" else unit.padded_cost

    def __getitem__(self, plan: StepPlan) -> Step:
        full = len(plan.micro_batches) - plan.dummies
        numbers = [self.units[i].size for i in plan.units]
        first = dict(zip(plan.units, accumulate(numbers, initial=0), strict=False))
        batches = []
        for i, units in enumerate(plan.micro_batches):
            places = [first[u] + k for u in units for k in range(self.units[u].size)]
            batches.append(evolve(self.batch(units, dummy=i >= full), global_index=torch.tensor(places)))
        counts = {
            "prompts": len(plan.units),
            "responses": sum(numbers),
            "tokens": sum(n for i in plan.units for g in self.units[i].own for n in g.scored_lengths),
        }
        return Step(tuple(batches), counts)

    def batch(self, indices: Sequence[int], dummy: bool = False) -> Batch:
        """A micro-batch of the units at `indices`."""
        split = self.split
        together = [r for i in indices for r in split.rows_of(i, without=("mismatched",))]
        apart = [r for i in indices for r in split.rows_of(i, "mismatched")]
        own = split.own[together]
        rows = torch.tensor(together)[own]
        return Batch(
            self._responses([g for i in indices for g in self.units[i].together], together),
            {name: split.columns[name][rows] for name in split.names if name not in (REFERENCE_LOGPS, *self.rewards)},
            None if own.all() else own,
            self._responses([g for i in indices for g in self.units[i].mismatched], apart) if apart else None,
            units=len(indices),
            dummy=dummy,
        )

    def _responses(self, groups: Sequence[Group], rows: Sequence[int]) -> Responses:
        made = collate_responses(groups, self.layout, row_tokens=self.row_tokens, pad_id=self.pad_id)
        columns = self.split.columns
        if self.rewards:
            made = evolve(made, rewards=torch.stack([columns[name][list(rows)].float() for name in self.rewards], 1))
        if REFERENCE_LOGPS in columns:
            made = evolve(made, reference_logps=columns[REFERENCE_LOGPS][list(rows)])
        return made
