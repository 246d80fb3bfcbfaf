"""Curriculum: pairs from easy to hard, in stages that follow one another (Curry-DPO, https://arxiv.org/abs/2403.07230)."""

from collections import defaultdict
from collections.abc import Sequence

from upo.data.example import Response, prompt_key
from upo.data.samplers import StepSampler
from upo.data.units import Unit
from upo.data.views import preference
from upo.errors import UserError
from upo.runtime.seeding import seed_at


def stages_of(units: Sequence[Unit]) -> list[int]:
    """The stage of each pair: 0 for the widest gap of its prompt, 1 for the next narrower one, ...; a pair alone has 0.

    Raises:
        UserError: units that are no ranked pairs.
    """
    gaps = [_gap(*unit.example.responses) if len(unit.responses) == 2 else None for unit in units]
    widths: dict[str, set[float]] = defaultdict(set)
    for unit, gap in zip(units, gaps, strict=True):
        if gap is None:
            raise UserError("CurriculumSampler orders ranked pairs; take a pairwise method, e.g. CurryDPO")
        widths[prompt_key(unit.example.prompt)].add(gap)
    places = {prompt: sorted(values, reverse=True) for prompt, values in widths.items()}
    return [places[prompt_key(u.example.prompt)].index(g) for u, g in zip(units, gaps, strict=True)]  # type: ignore[arg-type]


def _gap(better: Response, worse: Response) -> float | None:
    a, b = preference(better), preference(worse)
    return None if a is None or b is None else a - b


class CurriculumSampler(StepSampler):
    """Each epoch is all stages one after another, shuffled within a stage; no step mixes two stages."""

    @property
    def stages(self) -> list[list[int]]:
        """Units by stage."""
        if not hasattr(self, "_stages"):
            stage = stages_of(self.split.units)
            self._stages = [[i for i, s in enumerate(stage) if s == k] for k in range(max(stage) + 1)]
        return self._stages

    @property
    def stage_starts(self) -> list[int]:
        """The first step of each stage within an epoch."""
        lengths = [-(-len(stage) // self.units_per_step) for stage in self.stages]
        return [sum(lengths[:k]) for k in range(len(lengths))]

    def __len__(self) -> int:
        return self.stage_starts[-1] + -(-len(self.stages[-1]) // self.units_per_step)

    def steps(self, epoch: int) -> list[list[int]]:
        return [step for k, stage in enumerate(self.stages) for step in self.cut(stage, seed_at(self.seed, epoch, k))]
