"""SIGTERM, and SIGUSR1 before a time limit: finish the step, save, exit with 128 + the signal's number.

Lightning's own handling exits with 0, or saves within the signal handler, and can hang several ranks.
"""

import os
import signal
import subprocess
import warnings
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from upo.callbacks.checkpoints import is_finite
from upo.runtime.collectives import max_over_ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class GracefulStop(pl.Callback):
    """While steps are made the signal only sets a flag; the ranks agree on it at the end of a step. Before and after,
    where nothing is left to save, it ends the process at once.

    A SLURM job that gets SIGUSR1 (`#SBATCH --signal=SIGUSR1@120`) asks to be queued again, unless the Trainer was given
    a SLURMEnvironment with `auto_requeue: false`; `upo.fit` then goes on where it stopped.
    """

    def __init__(self) -> None:
        self.asked = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            stop_at_once(trainer)  # before Lightning looks whether anybody does

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop_at_once(trainer)
        if self.asked:  # while the end was saved
            leave(trainer, self.asked)

    def _ask(self, number: int, _: Any) -> None:
        self.asked = number

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if asked := int(max_over_ranks(torch.tensor(self.asked, device=pl_module.device))):
            folder = trainer.checkpoint_callback.dirpath  # type: ignore[union-attr]
            new = Path(folder, f"step={trainer.global_step}-stopped.ckpt")
            if is_finite(trainer):
                trainer.save_checkpoint(new)
                for old in set(new.parent.glob("*-stopped.ckpt")) - {new}:  # Lightning does not know them
                    trainer.strategy.remove_checkpoint(old)
            leave(trainer, asked)


def stop_at_once(trainer: pl.Trainer) -> None:
    """From now on the signals end this process where it is."""
    for number in SIGNALS:
        signal.signal(number, lambda asked, _: leave(trainer, asked))


def leave(trainer: pl.Trainer, asked: int) -> NoReturn:
    """Ends the process; before, on SIGUSR1, rank 0 has a SLURM job queued again."""
    environment = trainer._accelerator_connector.cluster_environment
    requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
    if asked == signal.SIGUSR1 and requeues and trainer.is_global_zero:
        requeue()
    raise SystemExit(128 + asked)


def requeue() -> None:
    """Asks SLURM to start this job again; warns where it does not."""
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        reason = done.stderr.strip() if done.returncode else None
    except FileNotFoundError as error:
        reason = str(error)
    if reason is not None:
        warnings.warn(f"job {job} is saved but was not queued again ({reason}); submit it once more")


def restarted() -> bool:
    """Whether SLURM has started this job again, with the same command."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
