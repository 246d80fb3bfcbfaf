"""Lightning's hooks of a method other than the step: heads, optimizer, clipping, checkpoints."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from upo.errors import UserError
from upo.methods.common.finite import StepValues
from upo.methods.common.first_steps import FirstSteps
from upo.methods.common.heads import SideHead
from upo.models.loading import BASE, START_SHA256, check_base, check_start
from upo.models.policy import Policy
from upo.models.reference import Reference
from upo.runtime.collectives import whole
from upo.runtime.optimizers import check_strategy, check_trainer, checked, clip


class Trained(pl.LightningModule):
    """A policy and heads beside it, with their optimizer; `Method` adds data, loss and step."""

    policy: Policy
    reference: Reference | None
    make_optimizer: OptimizerCallable
    make_scheduler: LRSchedulerCallable
    turning_points: Mapping[int, str] = MappingProxyType({})
    """Optimizer steps at which the loss becomes another, with what happens there; curves mark them."""

    def __init__(self) -> None:
        super().__init__()
        self.step_values, self.first_steps = StepValues(), FirstSteps()

    def heads(self) -> dict[str, SideHead]:
        """Modules trained beside the policy, by the name of the attribute that holds each."""
        return {}

    def add_heads(self) -> None:
        """Makes the heads that do not exist yet."""
        for name, head in self.heads().items():
            if not hasattr(self, name):
                setattr(self, name, head.make())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups; a group's `grad_clip` replaces the Trainer's norm clipping for it."""
        head_groups = [
            {"params": list(getattr(self, name).parameters()), "lr": head.lr, **head.options}
            for name, head in self.heads().items()
        ]
        return [{"params": [p for p in self.policy.parameters() if p.requires_grad]}, *head_groups]

    def configure_optimizers(self) -> dict[str, Any]:
        check_strategy(self)
        optimizer = checked(self.make_optimizer(self.parameter_groups()))  # type: ignore[arg-type]
        schedule = {"scheduler": self.make_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        if gradient_clip_algorithm == "value":
            raise UserError("gradients are clipped by norm; remove trainer.gradient_clip_algorithm")
        norms = []
        for group in optimizer.param_groups:
            limit = group.get("grad_clip", gradient_clip_val)
            norms.append(whole(clip(group["params"], limit or math.inf, self.trainer.strategy)))
        self.log_dict({"train/grad_norm": norms[0], "train/lr": optimizer.param_groups[0]["lr"]})
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # fp16: it skips such a step
        self.step_values.check([] if scaled else norms, self.global_step, Path(self.trainer.default_root_dir))
        self.first_steps.check(self, optimizer, norms[0])

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Does nothing: `training_step` clears gradients before its first micro-batch."""

    def on_train_start(self) -> None:
        self.first_steps = FirstSteps()
        check_trainer(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["policy_files"] = self.policy.files()
        if self.policy.base_sha256 is not None:
            checkpoint[BASE] = self.policy.base_sha256
        if self.reference is not None and self.reference.start_sha256 is not None:
            checkpoint[START_SHA256] = self.reference.start_sha256

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_base(checkpoint, self.policy.base_sha256, self.policy.path)
        check_start(checkpoint, self.reference and self.reference.start_sha256)
