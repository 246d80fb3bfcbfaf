"""Passes without gradient over groups, within a token budget: quantities from a policy, a reference or a function."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from upo.data.layout import Layout, Responses, collate_responses
from upo.data.samplers import one_pass
from upo.data.units import Group
from upo.models.logps import AXIS, DIVERGENCES
from upo.models.policy import Policy
from upo.runtime.collectives import ALONE, Ranks, sum_over_ranks

Scorer = Callable[..., Mapping[str, Tensor]]
"""A function from `(responses, names)` to quantities by name: a policy, a reference's `score`, or another one."""


@frozen(eq=False)
class Part:
    """The result of one forward pass."""

    groups: list[int]
    """Indices of the groups in this pass."""
    values: dict[str, Tensor]
    """Quantities of these groups by name, each along its axis (`upo.models.logps.AXIS`), on the scorer's device."""
    counts: bool
    """False if the pass only keeps this rank in step with the others: another part has its groups, too."""


def score(
    scorer: Scorer,
    groups: Sequence[Group],
    wanted: Collection[str] = (),
    *,
    layout: Layout,
    max_tokens: int,
    device: torch.device | str,
    ranks: Ranks = ALONE,
    against: tuple[Policy, Sequence[Group]] | None = None,
    title: str = "",
) -> dict[str, Tensor]:
    """Quantities of all groups, in their order, on the CPU in float32, e.g. `logps` [responses].

    Args:
        wanted: quantities in addition to `logps`, e.g. `prompt_hidden` [groups, D].
        layout: packed or padded.
        max_tokens: input tokens per forward pass.
        ranks: the ranks that share the work; each gets the whole result.
        against: another model, and the same groups tokenized for it, to compare a policy with: it gives
            `reference_logps`, and divergences are from it.
        title: of the progress bar; without one no bar is shown.
    """
    sizes = {
        "token": [sum(group.scored_lengths) for group in groups],
        "response": [len(group.responses) for group in groups],
        "prompt": [1] * len(groups),
    }
    starts = {axis: [0, *accumulate(number)] for axis, number in sizes.items()}
    totals: dict[str, Tensor] = {}
    options = {"layout": layout, "max_tokens": max_tokens, "device": device, "ranks": ranks, "title": title}
    for part in score_in_parts(scorer, groups, wanted, against=against, **options):
        for name, x in part.values.items():
            start = starts[AXIS[name]]
            if name not in totals:
                totals[name] = torch.zeros(start[-1], *x.shape[1:], device="cpu" if ranks.size == 1 else device)
            if part.counts:
                indices = torch.tensor([k for i in part.groups for k in range(start[i], start[i + 1])])
                totals[name][indices] = x.to(totals[name])
    return {name: (x if ranks.size == 1 else sum_over_ranks(x)).cpu() for name, x in totals.items()}


def score_in_parts(
    scorer: Scorer,
    groups: Sequence[Group],
    wanted: Collection[str] = (),
    *,
    layout: Layout,
    max_tokens: int,
    device: torch.device | str,
    ranks: Ranks = ALONE,
    against: tuple[Policy, Sequence[Group]] | None = None,
    title: str = "",
    bucket_by_length: bool | None = None,
    workers: int = 0,
) -> Iterator[Part]:
    """The forward passes of `score` one by one, this rank's share only, for results too large to keep.

    Args:
        bucket_by_length: whether groups of similar length go together; by default in the padded layout.
        workers: processes that collate the groups.
    """
    plan = one_pass(
        [group.cost if layout == "packed" else group.padded_cost for group in groups],
        max_tokens,
        bucket_by_length=layout == "padded" if bucket_by_length is None else bucket_by_length,
        rank=ranks.rank,
        world_size=ranks.size,
    )
    versions = [groups] if against is None or against[1] is groups else [groups, against[1]]
    dataset = _MicroBatches(versions, plan.micro_batches, layout, max_tokens)
    generator = torch.Generator()  # so that no random number is drawn from the run's own generator
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=workers, generator=generator)
    bar = tqdm(loader, title, unit="batch", leave=False, disable=None if title else True)  # None: only on a terminal
    for number, (indices, batches) in enumerate(zip(plan.micro_batches, bar, strict=True)):
        with torch.no_grad():
            values = _values(scorer, wanted, against and against[0], [batch.to(device) for batch in batches])
        yield Part(indices, values, number < len(plan.micro_batches) - plan.dummies)


def _values(
    scorer: Scorer, wanted: Collection[str], other: Policy | None, batches: Sequence[Responses]
) -> dict[str, Tensor]:
    """The scorer's quantities of a batch, and `reference_logps` by another model, if there is one.

    Args:
        batches: the responses as the scorer reads them and, as the last item, as the other model reads them.
    """
    if other is None:
        return dict(scorer(batches[0], wanted))
    compared = DIVERGENCES & set(wanted)
    other_values = other(batches[-1], ("hidden",) if compared else ())
    against = (hidden := other_values["hidden"], other.linear_head().to(hidden.dtype)) if compared else None
    return {**scorer(batches[0], wanted, against), "reference_logps": other_values["logps"]}


@frozen(eq=False)
class _MicroBatches(Dataset):
    """Collated micro-batches of groups, each in all `versions` (as several models read the same groups)."""

    versions: Sequence[Sequence[Group]]
    micro_batches: Sequence[list[int]]
    layout: Layout
    row_tokens: int

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, number: int) -> list[Responses]:
        indices = self.micro_batches[number]
        return [
            collate_responses([groups[i] for i in indices], self.layout, row_tokens=self.row_tokens, pad_id=0)
            for groups in self.versions
        ]
