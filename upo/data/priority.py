"""Priority sampling: units with a larger advantage come more often (A-LOL, https://arxiv.org/abs/2305.14718)."""

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from upo.data.samplers import StepSampler
from upo.errors import UserError
from upo.runtime.seeding import seed_at

ADVANTAGE = "advantage"
"""Column of own responses: their priority, known since before the first step."""


class PrioritySampler(StepSampler):
    """An epoch draws as many units as there are, with replacement, each time in proportion to their advantages."""

    @cached_property
    def mass(self) -> Float[Tensor, "units"]:
        """Cumulative advantages; negative ones count as 0."""
        if ADVANTAGE not in self.split.columns:
            raise UserError("PrioritySampler draws by advantage; take a method that has one, e.g. ALOL")
        values = self.split.own_column(ADVANTAGE).double().clamp(min=0)
        sizes = torch.tensor([unit.size for unit in self.split.units])
        owner = torch.arange(len(sizes)).repeat_interleave(sizes)
        return values.new_zeros(len(sizes)).index_add(0, owner, values).cumsum(0)

    def steps(self, epoch: int) -> list[list[int]]:
        number, size = len(self.costs), self.units_per_step
        generator = torch.Generator().manual_seed(seed_at(self.seed, epoch))
        places = self.mass[-1] * torch.rand(number, generator=generator, dtype=torch.float64)
        drawn = torch.searchsorted(self.mass, places, right=True).clamp(max=number - 1).tolist()
        return [drawn[i : i + size] for i in range(0, number, size)]
