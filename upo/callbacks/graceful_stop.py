"""Ctrl-C, SIGTERM, and SIGUSR1 before a time limit: finish the step, save, say how to go on, exit with 128 + number.

Lightning's own handling exits with 0 or 1, or saves within the signal handler, and can hang several ranks.
"""

import os
import shlex
import signal
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only

from upo.callbacks.checkpoints import is_finite
from upo.models.checkpoint_files import latest
from upo.runtime.collectives import max_over_ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Signals:
    """What the signals do to `python -m upo.fit`: they end it where it is; while steps are made they are only noted,
    and a second Ctrl-C ends it where it is.

    Rank 0 says what is saved and which command goes on.
    """

    def __init__(self, args: Sequence[str]):
        """
        Args:
            args: of the command line.
        """
        self.args, self.asked, self.noted_only = list(args), 0, False
        self.folder: Path | None = None
        """The run folder, as soon as it is this command's."""
        self.requeues = False
        """Whether SLURM shall start the job again after SIGUSR1."""

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Inside, the signals are handled so; afterwards as before."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _: Any) -> None:
        again = self.asked == number == signal.SIGINT
        self.asked = number
        if not self.noted_only or again:
            self.leave(number)
        elif number == signal.SIGINT:
            self._say("Ctrl-C: the run stops after this step and saves it; once more leaves at once")

    def leave(self, number: int) -> NoReturn:
        """Ends the process; before, on SIGUSR1, rank 0 has a SLURM job queued again."""
        if number == signal.SIGUSR1 and self.requeues and rank_zero_only.rank == 0:
            requeue()
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        newest = None if self.folder is None else latest(self.folder)
        if newest is None:
            self._say(f"stopped by {name}: no step is saved; begin again with: {command(self.args)}")
        else:
            args = [*_without(self.args, "--ckpt_path", "--overwrite"), "--ckpt_path", "last"]
            self._say(f"stopped by {name}: {newest} is saved; continue with: {command(args)}")
        raise SystemExit(128 + number)

    def _say(self, text: str) -> None:
        if rank_zero_only.rank == 0:
            os.write(2, f"{text}\n".encode())  # print could be what was interrupted


def command(args: Sequence[str]) -> str:
    """The command line with these arguments."""
    return shlex.join(["python", "-m", "upo.fit", *args])


def _without(args: Sequence[str], *names: str) -> Iterator[str]:
    """A command line without some options and their values."""
    dropped = False
    for arg in args:
        name, has_value, _ = arg.partition("=")
        if arg.startswith("--"):
            dropped = name in names
            if not dropped:
                yield arg
            dropped = dropped and not has_value
        elif not dropped:
            yield arg
        else:
            dropped = False


class GracefulStop(pl.Callback):
    """Stops a run at the end of the step in which a signal came to any rank: saves, and leaves.

    A SLURM job that gets SIGUSR1 (`#SBATCH --signal=SIGUSR1@120`) asks to be queued again, unless the Trainer was given
    a SLURMEnvironment with `auto_requeue: false`; `upo.fit` then goes on where it stopped.
    """

    def __init__(self, signals: Signals) -> None:
        self.signals = signals

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # in front of ours Lightning would put its own, which ends a run with 0 and nothing saved between two epochs
        trainer._signal_connector.register_signal_handlers = lambda: None
        environment = trainer._accelerator_connector.cluster_environment
        self.signals.requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.noted_only = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.noted_only = False
        if self.signals.asked:  # while the end was saved
            self.signals.leave(self.signals.asked)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if asked := int(max_over_ranks(torch.tensor(self.signals.asked, device=pl_module.device))):
            folder = trainer.checkpoint_callback.dirpath  # type: ignore[union-attr]
            new = Path(folder, f"step={trainer.global_step}-stopped.ckpt")
            if is_finite(trainer):
                trainer.save_checkpoint(new)
                for old in set(new.parent.glob("*-stopped.ckpt")) - {new}:  # Lightning does not know them
                    trainer.strategy.remove_checkpoint(old)
            trainer._logger_connector.update_train_step_metrics()  # which comes after this hook otherwise
            self.signals.leave(asked)


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
