"""The reference of each stage of a curriculum is the policy as the stage before left it (Curry-DPO's best variant)."""

from typing import Any

import lightning.pytorch as pl

from upo.callbacks.reference_sync import MovingReference, follow
from upo.data.curriculum import CurriculumSampler
from upo.errors import UserError


class StagedReference(MovingReference):
    """Copies the policy into the reference right before each stage but the first."""

    def move(self, trainer: pl.Trainer, method: Any) -> None:
        sampler = trainer.train_dataloader.sampler  # type: ignore[union-attr]
        if not isinstance(sampler, CurriculumSampler):
            raise UserError("StagedReference needs data.sampler: upo.data.curriculum.CurriculumSampler")
        if trainer.global_step % len(sampler) in sampler.stage_starts:
            follow(self.reference_model, method.policy, 1.0)
