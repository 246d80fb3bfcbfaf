"""Optimizers come by class path (torch.optim, bitsandbytes.optim, ...); here is what cannot work."""

from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from upo.errors import UserError


def checked(optimizer: Optimizer) -> Optimizer:
    """The same optimizer.

    Raises:
        UserError: one of bitsandbytes on sharded parameters, whose kernels know plain tensors only.
    """
    every = [p for group in optimizer.param_groups for p in group["params"]]
    if type(optimizer).__module__.startswith("bitsandbytes") and any(isinstance(p, DTensor) for p in every):
        raise UserError(
            f"bitsandbytes' {type(optimizer).__name__} does not work on sharded parameters; set model.optimizer: "
            "torch.optim.AdamW (shards are small), or torchao.optim.AdamW8bit (pip install torchao), or use DDP"
        )
    return optimizer
