"""TR-DPO, trust-region references (Gorbatovski et al., ICLR 2025), https://arxiv.org/abs/2404.09656.

The loss stays that of any method with a `FrozenReference` (TR-DPO, TR-IPO, TR-KTO, ...); between optimizer steps the
reference follows the policy, theta_ref <- alpha theta + (1 - alpha) theta_ref:

    soft: trainer.callbacks: [{class_path: upo.callbacks.reference_sync.ReferenceSync, init_args: {alpha: 0.6}}]
    hard: the same with init_args: {alpha: 1.0, every: 512}

The mechanism is verified; that the paper's soft update runs every step is from knowledge (its alpha is 0.5 to 0.6,
hard updates come every 512 or 1024 steps, and common code mixes 0.6 every 512 steps). An update happens right before
the step that first uses it, so that validation is measured against the reference that was trained with.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from torch import Tensor, nn

from upo.callbacks.run_end import RunCallback, TrainedRun
from upo.errors import UserError
from upo.models.policy import Policy
from upo.models.reference import FrozenReference
from upo.runtime.collectives import whole


@torch.no_grad()
def follow(reference: nn.Module, policy: nn.Module, alpha: float) -> None:
    """reference <- alpha policy + (1 - alpha) reference; tied weights move once."""
    theirs = dict(policy.named_parameters())
    if {n: p.shape for n, p in theirs.items()} != {n: p.shape for n, p in reference.named_parameters()}:
        raise UserError("the reference has another architecture than the policy and cannot follow it; drop its path")
    for name, ours in reference.named_parameters():
        ours.lerp_(whole(theirs[name]).to(ours), alpha)  # a shard of it would be another tensor
    buffers = dict(policy.named_buffers())
    for name, ours in reference.named_buffers():
        ours.copy_(buffers[name])


class MovingReference(RunCallback):
    """Base of callbacks that move a `FrozenReference`: checkpoints carry it, a resumed run goes on with it.

    After training it brings back the reference of the start: evaluations compare with the model before training.
    """

    reference: FrozenReference
    _start: dict[str, Tensor] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if pl_module.reference is None:
            method = type(pl_module).__name__
            raise UserError(f"{type(self).__name__} moves the reference, and {method} has none; remove the callback")
        if not isinstance(pl_module.reference, FrozenReference):
            raise UserError(f"{type(self).__name__} moves the reference; set `model.reference: FrozenReference`")
        self.reference = pl_module.reference  # type: ignore[assignment]

    def move(self, trainer: pl.Trainer, method: Any) -> None:
        """Updates the reference where the coming step asks for it."""
        raise NotImplementedError

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int) -> None:
        if any(b.responses.reference_logps is not None for b in batch.micro_batches):
            raise UserError(f"{type(self).__name__} moves the reference, but its log-probs were stored; compute them")
        if trainer.global_step > 0:
            self._keep_start()
            self.move(trainer, pl_module)

    def _keep_start(self) -> None:
        if self._start is None:
            self._start = {name: x.detach().to("cpu", copy=True) for name, x in _tensors(self.reference_model)}

    @property
    def reference_model(self) -> Policy:
        assert self.reference.model is not None, "built by the method's configure_model"
        return self.reference.model

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self.reference_model.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._keep_start()
        self.reference_model.load_state_dict(state_dict["reference"])

    def on_run_end(self, run: TrainedRun) -> None:
        """The reference becomes the model that it was before training."""
        if self._start is not None:
            with torch.no_grad():
                for name, x in _tensors(self.reference_model):
                    x.copy_(self._start[name])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Everything that may move: more than a checkpoint holds, where an adapter is trained."""
    return chain(model.named_parameters(), model.named_buffers())


class ReferenceSync(MovingReference):
    """theta_ref <- alpha theta + (1 - alpha) theta_ref every so many optimizer steps."""

    def __init__(self, alpha: ClosedUnitInterval = 0.6, every: PositiveInt = 1):
        """
        Args:
            alpha: weight of the POLICY, in [0, 1]; 1 replaces the reference (hard), 0 leaves it (paper, soft: 0.5 to
                0.6).
            every: optimizer steps between two updates (paper, hard: 512 or 1024).
        """
        self.alpha, self.every = alpha, every

    def move(self, trainer: pl.Trainer, method: Any) -> None:
        if trainer.global_step % self.every == 0:
            follow(self.reference_model, method.policy, self.alpha)
