"""mrDPO, multi-round DPO (Tang et al., 2024), https://arxiv.org/abs/2410.06682, for any method with a FrozenReference.

Every `every` steps a round ends: LoRA adapters, where the policy has some, are merged into the weights and begin anew,
the policy becomes the reference, and the optimizer forgets its moments. So the loss of a round starts where the first
one did. Differs from hard TR-DPO by the merge and by the optimizer. Verified in the authors' code, where the reference
is the policy with its new adapter off; here it is a copy, equal to it and also right without adapters.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse.typing import PositiveInt
from torch import nn

from upo.callbacks.reference_sync import MovingReference, follow


@torch.no_grad()
def merge_adapters(model: nn.Module) -> int:
    """Adds LoRA adapters to the weights below them and gives each a fresh start; returns how many there were."""
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError:  # then nobody has put any in
        return 0
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    for layer in layers:
        names = list(layer.active_adapters)
        layer.merge(safe_merge=True)
        layer.merged_adapters.clear()  # the weights are the new base
        for name in names:
            layer.reset_lora_parameters(name, True)
    return len(layers)


class Rounds(MovingReference):
    """Multi-round training: merge, renew the reference, reset the optimizer."""

    def __init__(self, every: PositiveInt = 1000):
        """
        Args:
            every: optimizer steps a round.
        """
        self.every = every

    def move(self, trainer: pl.Trainer, method: Any) -> None:
        if trainer.global_step % self.every == 0:
            merge_adapters(method.policy)
            follow(self.reference_model, method.policy, 1.0)
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
