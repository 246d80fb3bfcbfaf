"""mrDPO, multi-round DPO (Tang et al., 2024), https://arxiv.org/abs/2410.06682, for any method with a FrozenReference.

Every `every` steps a round ends: LoRA adapters, where the policy has some, are merged into the weights and begin anew,
the policy becomes the reference, and the optimizer forgets its moments. So the loss of a round starts where the first
one did. Differs from hard TR-DPO by the merge and by the optimizer. Verified in the authors' code, where the reference
is the policy with its new adapter off: AdapterReference does that, and evaluations after training then compare with the
last round's start. A FrozenReference is a copy, right without adapters too; evaluations compare with the first start.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse.typing import PositiveInt
from torch import nn

from upo.callbacks.reference_sync import MovingReference, follow
from upo.errors import UserError
from upo.models.reference import AdapterReference


@torch.no_grad()
def merge_adapters(model: nn.Module) -> int:
    """Adds LoRA adapters to the weights below them and gives each a fresh start; returns how many there were."""
    try:
        from peft.tuners.lora import LoraLayer
        from peft.utils.other import ModulesToSaveWrapper
    except ImportError:  # then nobody has put any in
        return 0
    for module in (m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)):
        module.original_module.load_state_dict(module.modules_to_save[module.active_adapters[0]].state_dict())
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    for layer in layers:
        names = list(layer.active_adapters)
        layer.merge(safe_merge=True)
        layer.merged_adapters.clear()  # the weights are the new base
        for name in names:
            layer.reset_lora_parameters(name, True)
    return len(layers)


def check_ends(model: Any) -> None:
    """Raises a `UserError` where merging an adapter of the output head would change the embeddings too."""
    ends = {model.get_input_embeddings(), model.get_output_embeddings()}
    if model.config.get_text_config().tie_word_embeddings and any(hasattr(end, "active_adapters") for end in ends):
        raise UserError("embeddings and output head share their weights, Rounds cannot merge an adapter of one of them")


class Rounds(MovingReference):
    """Multi-round training: merge, renew the reference, reset the optimizer."""

    def __init__(self, every: PositiveInt = 1000):
        """
        Args:
            every: optimizer steps a round.
        """
        self.every, self._shares = every, False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses adapters that cannot become part of the weights."""
        policy: Any = pl_module.policy
        if policy.quantization is not None:
            raise UserError("Rounds adds adapters to the weights, which 4 bits would round; drop policy.quantization")
        self._shares = isinstance(pl_module.reference, AdapterReference)
        if not self._shares:
            super().setup(trainer, pl_module, stage)
        elif policy.adapter is not None and policy.adapter.path is not None:
            raise UserError(
                "Rounds and policy.adapter.path need a copy to compare with; set reference: FrozenReference"
            )

    def move(self, trainer: pl.Trainer, method: Any) -> None:
        if trainer.global_step % self.every != 0:
            return
        check_ends(method.policy.model)
        with torch.random.fork_rng():  # a resumed run begins the round with the same numbers
            torch.manual_seed(trainer.global_step)
            merged = merge_adapters(method.policy) > 0
        if merged:
            method.policy.forget_base()
        if not self._shares:
            follow(self.reference_model, method.policy, 1.0)
            if merged:
                self.reference_model.forget_base()
        for optimizer in trainer.optimizers:
            optimizer.state.clear()

    def _keep_start(self) -> None:
        if not self._shares:
            super()._keep_start()

    def state_dict(self) -> dict[str, Any]:
        return {} if self._shares else super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._shares:
            super().load_state_dict(state_dict)
