"""Whole models on every rank of a sharded run, to sample from: each token would need all shards otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.distributed.fsdp import FSDPModule

if TYPE_CHECKING:
    from upo.models.policy import Policy


@contextmanager
def gathered(policy: "Policy") -> Iterator[None]:
    """All weights of a policy on this rank, in the dtype that its layers compute in; in shards again afterwards.

    A collective, at both ends: what happens inside needs no other rank. A policy that is not sharded stays as it is.
    Nothing inside may move the model or ask for its state dict, either of which puts the shards back.
    """
    holder = policy.holder
    parts = [module for module in holder.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(holder.reshards, recurse=False)
