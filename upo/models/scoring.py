"""THE pass without gradient over groups: what a policy, a reference or a method says of them, within a token budget."""

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
"""Gives quantities by name for `(responses, names)`: a policy, a reference's `score`, or any function."""


@frozen(eq=False)
class Part:
    """What one forward pass says."""

    groups: list[int]
    """Which of the groups went through it."""
    values: dict[str, Tensor]
    """Quantities of these groups by name, each along its axis (`upo.models.logps.AXIS`), where the scorer computes."""
    counts: bool
    """False where the pass only keeps this rank in step with the others, which have these groups as well."""


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
    """All groups, in their order, on the CPU in float32: e.g. `logps` [responses], `prompt_hidden` [groups, D].

    Args:
        wanted: quantities beside `logps`.
        layout: how groups are laid out, and `max_tokens` how many input tokens make a forward pass.
        ranks: who shares the work; the result is whole on each.
        against: another model, with the groups as it reads them, for a policy to be compared with: it gives
            `reference_logps`, and divergences are from it.
        title: of the progress bar; none without.
    """
    sizes = {
        "token": [sum(group.scored_lengths) for group in groups],
        "response": [len(group.responses) for group in groups],
        "prompt": [1] * len(groups),
    }
    starts = {axis: [0, *accumulate(number)] for axis, number in sizes.items()}
    found: dict[str, Tensor] = {}
    options = {"layout": layout, "max_tokens": max_tokens, "device": device, "ranks": ranks, "title": title}
    for part in score_in_parts(scorer, groups, wanted, against=against, **options):
        for name, x in part.values.items():
            start = starts[AXIS[name]]
            if name not in found:
                found[name] = torch.zeros(start[-1], *x.shape[1:], device="cpu" if ranks.size == 1 else device)
            if part.counts:
                places = torch.tensor([k for i in part.groups for k in range(start[i], start[i + 1])])
                found[name][places] = x.to(found[name])
    return {name: (x if ranks.size == 1 else sum_over_ranks(x)).cpu() for name, x in found.items()}


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
    """The same pass by pass, of this rank's share alone, for those who keep little or write it away.

    Args:
        bucket_by_length: whether groups of like length go together; by default in the padded layout.
        workers: processes that lay groups out.
    """
    plan = one_pass(
        [group.cost if layout == "packed" else group.padded_cost for group in groups],
        max_tokens,
        bucket_by_length=layout == "padded" if bucket_by_length is None else bucket_by_length,
        rank=ranks.rank,
        world_size=ranks.size,
    )
    versions = [groups] if against is None or against[1] is groups else [groups, against[1]]
    laid_out = _LaidOut(versions, plan.micro_batches, layout, max_tokens)
    generator = torch.Generator()  # none of the run's own random numbers is drawn
    loader: Any = DataLoader(laid_out, batch_size=None, num_workers=workers, generator=generator)
    bar = tqdm(loader, title, unit="batch", leave=False, disable=None if title else True)  # None: only on a terminal
    for number, (chosen, batches) in enumerate(zip(plan.micro_batches, bar, strict=True)):
        with torch.no_grad():
            values = _values(scorer, wanted, against and against[0], [batch.to(device) for batch in batches])
        yield Part(chosen, values, number < len(plan.micro_batches) - plan.dummies)


def _values(
    scorer: Scorer, wanted: Collection[str], other: Policy | None, batches: Sequence[Responses]
) -> dict[str, Tensor]:
    """What the scorer says of responses, and beside it another model of its own version of them, the last one."""
    if other is None:
        return dict(scorer(batches[0], wanted))
    compared = DIVERGENCES & set(wanted)
    theirs = other(batches[-1], ("hidden",) if compared else ())
    against = (states := theirs["hidden"], other.linear_head().to(states.dtype)) if compared else None
    return {**scorer(batches[0], wanted, against), "reference_logps": theirs["logps"]}


@frozen(eq=False)
class _LaidOut(Dataset):
    """Micro-batches of groups, in one version or several."""

    versions: Sequence[Sequence[Group]]
    micro_batches: Sequence[list[int]]
    layout: Layout
    row_tokens: int

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, number: int) -> list[Responses]:
        chosen = self.micro_batches[number]
        return [
            collate_responses([groups[i] for i in chosen], self.layout, row_tokens=self.row_tokens, pad_id=0)
            for groups in self.versions
        ]
