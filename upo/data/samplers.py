"""Which units make an optimizer step, and how a step is cut into micro-batches. The order never depends on ranks."""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from attrs import frozen
from torch.utils.data import Sampler

from upo.data.rounds import Split
from upo.runtime.seeding import seed_at


@frozen
class StepPlan:
    """Units of one global step and this rank's share of them."""

    units: list[int]
    """All units of the step, over all ranks."""
    micro_batches: list[list[int]]
    """This rank's units, as many micro-batches as every other rank has."""
    dummies: int
    """How many of the last micro-batches only keep this rank in step with the others."""


class StepSampler(Sampler[StepPlan]):
    """Shuffled steps of `units_per_step` units, cut by a token budget.

    `start` says at which epoch and step of it an iterator begins, when it is made. The length stays the full epoch's,
    because a shorter loader would make Lightning end the epoch early after a resume.
    """

    def __init__(
        self,
        costs: Sequence[int],
        *,
        units_per_step: int,
        tokens_per_microbatch: int,
        shuffle: bool,
        seed: int,
        start: Callable[[], tuple[int, int]] = lambda: (0, 0),
        rank: int = 0,
        world_size: int = 1,
        bucket_by_length: bool = False,
        split: Split | None = None,
    ):
        """
        Args:
            costs: input tokens of each unit.
            units_per_step: units of one GLOBAL step; the epoch's last step may have fewer.
            tokens_per_microbatch: budget of one forward pass; a longer unit gets a micro-batch of its own.
            start: asked whenever an iterator starts: Lightning sets `sampler.epoch` too late.
            bucket_by_length: whether a micro-batch holds units of like length, for layouts that pad.
            split: what is sampled, for orders that depend on it.
        """
        self.costs, self.units_per_step, self.budget = costs, units_per_step, tokens_per_microbatch
        self.shuffle, self.seed, self.rank, self.world_size = shuffle, seed, rank, world_size
        self.start, self.bucket_by_length, self.split = start, bucket_by_length, split or Split(())

    def __len__(self) -> int:
        return -(-len(self.costs) // self.units_per_step)

    def __iter__(self) -> Iterator[StepPlan]:
        epoch, first = self.start()
        for units in self.steps(epoch)[first:]:
            yield self.plan(units)

    def steps(self, epoch: int) -> list[list[int]]:
        """Units of each step of an epoch, in the order in which they are taken."""
        return self.cut(list(range(len(self.costs))), seed_at(self.seed, epoch))

    def cut(self, units: list[int], seed: int) -> list[list[int]]:
        """Units, shuffled if so wished, in steps."""
        if self.shuffle:
            order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed)).tolist()
            units = [units[i] for i in order]
        return [units[i : i + self.units_per_step] for i in range(0, len(units), self.units_per_step)]

    def plan(self, units: list[int]) -> StepPlan:
        """Micro-batches of one step, dealt out to the ranks by weight."""
        bins = self._bucketed(units) if self.bucket_by_length else self._balanced(units)
        bins.sort(key=lambda b: -sum(self.costs[u] for u in b))
        rounds = [bins[i : i + self.world_size] for i in range(0, len(bins), self.world_size)]
        shares: list[list[list[int]]] = [[] for _ in range(self.world_size)]
        loads = [0] * self.world_size
        for dealt in rounds:  # one each; the heaviest goes to the rank with the least so far
            for rank, units_ in zip(sorted(range(self.world_size), key=lambda r: loads[r]), dealt, strict=False):
                shares[rank].append(sorted(units_))
                loads[rank] += sum(self.costs[u] for u in units_)
        mine = shares[self.rank]
        dummies = len(rounds) - len(mine)
        return StepPlan(units, mine + [units[:1]] * dummies, dummies)

    def _balanced(self, units: list[int]) -> list[list[int]]:
        """As few micro-batches as the budget allows, equally heavy, as many for each rank: packed rows hold any mix."""
        least = sum(min(self.costs[u], self.budget) for u in units) / self.budget
        while True:
            number = min(len(units), -(-math.ceil(least) // self.world_size) * self.world_size)
            bins = self._dealt(units, number)
            if number == len(units) or all(len(b) == 1 or sum(self.costs[u] for u in b) <= self.budget for b in bins):
                return bins
            least = max(number + 1, 1.02 * number)

    def _dealt(self, units: list[int], number: int) -> list[list[int]]:
        """Longest first, each to the lightest so far."""
        bins: list[list[int]] = [[] for _ in range(number)]
        lightest = [(0, i) for i in range(number)]
        for unit in sorted(units, key=lambda u: -self.costs[u]):
            load, i = heapq.heappop(lightest)
            bins[i].append(unit)
            heapq.heappush(lightest, (load + self.costs[unit], i))
        return bins

    def _bucketed(self, units: list[int]) -> list[list[int]]:
        """Units of like length together: padded rows are as long as the longest of their micro-batch."""
        bins: list[list[int]] = []
        load = self.budget
        for unit in sorted(units, key=lambda u: -self.costs[u]):
            load += self.costs[unit]
            if load > self.budget:
                bins.append([])
                load = self.costs[unit]
            bins[-1].append(unit)
        while len(bins) % self.world_size and max(map(len, bins)) > 1:  # halve the fullest rather than idle a rank
            bins.sort(key=len)
            widest = bins.pop()
            bins += [widest[::2], widest[1::2]]
        return bins


def one_pass(
    costs: Sequence[int], tokens_per_microbatch: int, *, bucket_by_length: bool, rank: int = 0, world_size: int = 1
) -> StepPlan:
    """Forward passes over all units once: a single step of all of them."""
    sampler = StepSampler(
        costs,
        units_per_step=len(costs),
        tokens_per_microbatch=tokens_per_microbatch,
        shuffle=False,
        seed=0,
        rank=rank,
        world_size=world_size,
        bucket_by_length=bucket_by_length,
    )
    return sampler.plan(list(range(len(costs))))
