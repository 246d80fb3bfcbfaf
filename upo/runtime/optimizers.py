"""Optimizers come by class path (torch.optim, bitsandbytes.optim, ...): what cannot work, one kernel, and clipping."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.distributed.fsdp import ShardingStrategy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from upo.errors import UserError


def checked(optimizer: Optimizer) -> Optimizer:
    """The same optimizer, in one kernel where it has one and all is on CPUs: a quarter of the time of one by one.

    Raises:
        UserError: one of bitsandbytes on sharded parameters, whose kernels know plain tensors only.
    """
    every = [p for group in optimizer.param_groups for p in group["params"]]
    if type(optimizer).__module__.startswith("bitsandbytes") and any(isinstance(p, DTensor) for p in every):
        raise UserError(
            f"bitsandbytes' {type(optimizer).__name__} does not work on sharded parameters; set model.optimizer: "
            "torch.optim.AdamW (shards are small), or torchao.optim.AdamW8bit (pip install torchao), or use DDP"
        )
    if all(type(p) is torch.nn.Parameter and p.device.type == "cpu" for p in every):
        for group in optimizer.param_groups:
            if group.get("fused", False) is None and not group.get("foreach"):  # None: nobody has chosen
                group["fused"] = True
    return optimizer


def check_strategy(method: Any) -> None:
    """Refuses what Lightning's FSDPStrategy does wrong: it loses gradients of heads beside the policy, and `clip`
    counts whole gradients once for each rank.

    Raises:
        UserError: names the head, or the setting, and the strategy that trains it.
    """
    strategy = method.trainer.strategy
    if isinstance(strategy, FSDPStrategy):
        if strategy.sharding_strategy is ShardingStrategy.NO_SHARD:
            raise UserError("FSDPStrategy with NO_SHARD shards nothing; take trainer.strategy: ddp")
        for name, child in method.named_children():
            if child is not method.policy and any(p.requires_grad for p in child.parameters()):
                raise UserError(
                    f"FSDPStrategy does not train {name}; take trainer.strategy: upo.parallel.strategy.Sharded"
                )


def check_trainer(trainer: Any) -> None:
    """Refuses what the Trainer would do to a step or a dtype behind the method's back.

    Raises:
        UserError: names the setting and what to set instead.
    """
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            "trainer.accumulate_grad_batches must be 1: a step is data.pairs_per_step pairs, "
            "cut into micro-batches of data.tokens_per_microbatch tokens"
        )
    if trainer.precision in ("bf16-true", "16-true", "64-true"):
        raise UserError(
            f"trainer.precision={trainer.precision} would convert metrics and value head, not the reference; "
            "set policy.dtype (bfloat16, float64), or trainer.precision: bf16-mixed"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        for optimizer in trainer.optimizers:
            if getattr(optimizer, "_step_supports_amp_scaling", False):
                raise UserError(
                    f"{type(optimizer).__name__} with fused: true takes fp16's scale off the gradients after they are "
                    f"clipped; leave fused out, or set trainer.precision: bf16-mixed instead of {trainer.precision}"
                )


def clip(parameters: Sequence[Tensor], limit: float, strategy: Any) -> Tensor:
    """Scales gradients down to a norm, over all ranks; returns the norm before."""
    if not isinstance(strategy, FSDPStrategy):
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    # Its gradients are pieces that do not say so, and its own clipping knows no groups.
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]) ** 2
    norm = norm.to(strategy.root_device, torch.float32)
    dist.all_reduce(norm, group=strategy.model.process_group)  # type: ignore[union-attr]
    torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm.sqrt())
    return norm.sqrt()
