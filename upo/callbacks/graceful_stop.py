"""SIGTERM: finish the step, save, exit with 143. Lightning's own handling exits with 0 and can hang several ranks."""

import signal
from typing import Any

import lightning.pytorch as pl
import torch

from upo.ranks import max_over_ranks


class GracefulStop(pl.Callback):
    """The signal only sets a flag; the ranks agree on it at the end of a step."""

    def __init__(self) -> None:
        self.asked = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if max_over_ranks(torch.tensor(float(self.asked), device=pl_module.device)):
            folder = trainer.checkpoint_callback.dirpath  # type: ignore[union-attr]
            trainer.save_checkpoint(f"{folder}/step={trainer.global_step}-stopped.ckpt")
            raise SystemExit(143)
