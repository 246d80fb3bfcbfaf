"""Collectives that also work without any process group."""

import os
from typing import Any

import torch
import torch.distributed as dist
from attrs import frozen
from torch import Tensor
from torch.distributed.tensor import DTensor


@frozen
class Ranks:
    """This process among those that share some work."""

    rank: int
    size: int


ALONE = Ranks(0, 1)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of x over all ranks, on every rank."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def max_over_ranks(x: Tensor) -> Tensor:
    """The maximum of x over all ranks, on every rank."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def whole(x: Tensor) -> Tensor:
    """The whole tensor of a shard, on every rank; any other tensor itself."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def gather_objects(x: Any, ranks: Ranks) -> list[Any]:
    """What each of the ranks has, in their order, on every rank; anything that can be pickled."""
    if ranks.size == 1:
        return [x]
    found: list[Any] = [None] * ranks.size
    dist.all_gather_object(found, x)
    return found


def gather_rows(x: Tensor) -> tuple[Tensor, slice]:
    """Rows [n, ...] of all ranks one behind the other, n may differ, and which of them are this rank's own."""
    if not (dist.is_available() and dist.is_initialized()):
        return x, slice(0, len(x))
    counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    lengths = [int(n) for n in counts]
    padded = x.new_zeros(max(lengths), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    start = sum(lengths[: dist.get_rank()])
    return torch.cat([p[:n] for p, n in zip(parts, lengths, strict=True)]), slice(start, start + len(x))


def first_on_node() -> bool:
    """Whether this process does what one of each machine does, by what launchers tell it; also before they have met."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) == 0
