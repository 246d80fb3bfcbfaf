"""What a sharded strategy needs around its shards: what it refuses, weights from rank 0, optimizer states by name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from upo.callbacks.reference_sync import MovingReference
from upo.errors import UserError
from upo.models import quantization
from upo.models.reference import AdapterReference, FrozenReference
from upo.models.stored_reference import StoredReference


def is_sharded(strategy: Any) -> bool:
    """Whether each rank holds a part of the model alone, so that no rank can sample or evaluate by itself."""
    return isinstance(strategy, ModelParallelStrategy | FSDPStrategy)


def check(method: Any, callbacks: Sequence[Any]) -> None:
    """Raises a `UserError` for what works on whole models alone."""
    reference = method.reference
    if reference is not None and type(reference) not in (FrozenReference, AdapterReference, StoredReference):
        raise UserError(f"{type(reference).__name__} works on whole models; set model.reference: FrozenReference")
    if own := [name for name, _ in method.named_parameters(recurse=False)]:
        raise UserError(f"{type(method).__name__}.{own[0]} is no part of a module; put it into one that `heads` names")
    if moving := [type(c).__name__ for c in callbacks if isinstance(c, MovingReference)]:
        raise UserError(f"{moving[0]} moves whole models only; take trainer.strategy: ddp")


def receive(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Rank 0's weights and buffers of a module on all ranks; what is sharded already is left alone."""
    known: dict[int, Tensor] = {}

    def received(x: Tensor, dtype: torch.dtype | None) -> Tensor:
        wanted = dtype or x.dtype
        whole = (
            x.detach().to(device, wanted).contiguous()
            if dist.get_rank() == 0
            else torch.empty_like(x, dtype=wanted, device=device)
        )
        dist.broadcast(whole, 0)
        return whole

    for part in module.modules():
        for name, p in part._parameters.items():
            if p is None or isinstance(p, DTensor):
                continue
            if name == "weight" and quantization.is_quantized(part):
                quantization.receive(part, device)
                continue
            if id(p) not in known:
                known[id(p)] = nn.Parameter(received(p, dtype if p.is_floating_point() else None), p.requires_grad)
            part._parameters[name] = known[id(p)]  # type: ignore[assignment]
        for name, x in part._buffers.items():
            if x is not None:
                part._buffers[name] = received(x, None)


@contextmanager
def single_errors() -> Iterator[None]:
    """Around PyTorch's distributed checkpoints, which raise what has gone wrong on any rank as one BaseException."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


def named(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """An optimizer's state by name of the parameter instead of its number."""
    return {
        "state": {names[number]: values for number, values in state["state"].items()},
        "param_groups": [g | {"params": [names[number] for number in g["params"]]} for g in state["param_groups"]],
    }
