"""One split of the data, indexed by optimizer steps."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain

import torch
from attrs import evolve
from torch import Tensor
from torch.utils.data import Dataset

from upo.data.batch import Batch, Step
from upo.data.layout import Layout, Tokens, lay_out
from upo.data.partners import derangement
from upo.data.samplers import StepPlan


class StepData(Dataset[Step]):
    """Units of one split; indexing by a `StepPlan` gives the `Step`."""

    def __init__(
        self,
        units: list[Tokens],
        batch_type: type[Batch],
        *,
        layout: Layout,
        tokens_per_microbatch: int,
        max_length: int,
        pad_id: int,
        rewards: Sequence[str],
        seed: int,
    ):
        self.units, self.batch_type, self.max_length = units, batch_type, max_length
        self.layout: Layout = layout
        self.as_read = units, rewards
        """What a method finds that drops units before it trains, or adds rewards to them."""
        self.row_tokens, self.pad_id, self.rewards = tokens_per_microbatch, pad_id, rewards
        self.stored: Callable[[Sequence[Tokens]], Tensor] | None = None
        """Finds reference log-probs, one a response; None where the reference is asked in each step."""
        self.partners = None
        if batch_type.borrows_responses or batch_type.borrows_units:
            self.partners = derangement([batch_type.partner_key(u.example) for u in units], seed)

    def __len__(self) -> int:
        return len(self.units)

    def cost(self, index: int) -> int:
        """Input tokens of a unit in the chosen layout, and of the partner that joins it."""
        joined = [self.partners[index]] if self.partners is not None and self.batch_type.borrows_units else []
        return sum(self._cost(self.units[i]) for i in (index, *joined))

    def _cost(self, unit: Tokens) -> int:
        if self.layout == "packed":
            return unit.cost
        return sum(len(x.responses) * (len(x.prompt) + max(map(len, x.responses)) - 1) for x in unit.parts)

    def __getitem__(self, plan: StepPlan) -> Step:
        full = len(plan.micro_batches) - plan.fillers
        numbers = [len(self.units[i].responses) for i in plan.units]
        first = dict(zip(plan.units, accumulate(numbers, initial=0), strict=False))
        batches = []
        for i, units in enumerate(plan.micro_batches):
            places = [first[u] + k for u in units for k in range(len(self.units[u].responses))]
            batches.append(evolve(self.batch(units, filler=i >= full), places=torch.tensor(places)))
        counts = {
            "prompts": len(plan.units),
            "responses": sum(numbers),
            "tokens": sum(len(r) for i in plan.units for r in self.units[i].responses),
        }
        return Step(tuple(batches), counts)

    def batch(self, indices: Sequence[int], filler: bool = False) -> Batch:
        """A micro-batch of the units at `indices`."""

        def arrange(units: Sequence[Tokens], rewards: Sequence[str] = self.rewards):
            made = lay_out(units, self.layout, row_tokens=self.row_tokens, pad_id=self.pad_id, rewards=rewards)
            return made if self.stored is None else evolve(made, reference_logps=self.stored(units))

        borrowed = [] if self.partners is None else [self._mismatch(i, self.partners[i]) for i in indices]
        batch = self.batch_type.collate([self.units[i] for i in indices], arrange, borrowed)
        return evolve(batch, filler=filler)

    def rows(self) -> Iterator[Tokens]:
        """Everything that batches are made of: the units, their contexts, their prompts with borrowed responses."""
        borrowed = (self._mismatch(i, partner) for i, partner in enumerate(self.partners or ()))
        for unit in chain(self.units, borrowed):
            yield from unit.parts

    def _mismatch(self, unit: int, donor: int) -> Tokens:
        """What a unit borrows: the donor itself, or its responses behind the own prompt, cut on the left if need be."""
        if self.batch_type.borrows_units:
            return self.units[donor]
        prompt, responses = self.units[unit].prompt, self.units[donor].responses
        room = max(2, self.max_length - max(map(len, responses)))
        if len(prompt) > room:
            prompt = prompt[:1] + prompt[len(prompt) - room + 1 :]
        return Tokens(prompt, responses, self.units[donor].example)
