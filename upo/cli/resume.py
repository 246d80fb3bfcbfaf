"""Where a run's folder begins, and what it goes on from."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from upo.callbacks.graceful_stop import restarted
from upo.errors import UserError
from upo.models.checkpoint_files import check_resumable, latest, step_of
from upo.runtime.collectives import first_on_node
from upo.runtime.lock import alone
from upo.runtime.run_folder import RunPaths


@contextmanager
def run_alone(folder: Path) -> Iterator[None]:
    """While a command writes into a run folder; rank 0 has it for all ranks.

    Raises:
        UserError: another command works there.
    """
    if rank_zero_only.rank != 0:
        yield
        return
    with alone(RunPaths(folder).lock, f"another command works in {folder}"):
        yield


def prepare_folder(folder: Path, ckpt_path: str | None, overwrite: bool) -> str | None:
    """Refuses to mix runs; returns the checkpoint to resume from, looked through once on each machine.

    Raises:
        UserError: what is in the folder, or asked for, does not go together; or the checkpoint is broken.
    """
    found = _checkpoint(folder, ckpt_path, overwrite)
    if found is not None and first_on_node():
        check_resumable(Path(found))
    return found


def _checkpoint(folder: Path, ckpt_path: str | None, overwrite: bool) -> str | None:
    run = RunPaths(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--trainer.default_root_dir {folder} is a file; give a folder")
    newest = latest(folder)
    again = restarted() and newest is not None
    if again:
        ckpt_path, overwrite = "last", False
    if rank_zero_only.rank != 0:  # rank 0 has decided; what it has begun since then is no reason to refuse
        return str(newest) if ckpt_path == "last" else ckpt_path and str(Path(ckpt_path).resolve())
    if overwrite:
        if ckpt_path is not None:
            raise UserError("--overwrite deletes the checkpoint that --ckpt_path asks for; give one of them")
        there = [path for path in folder.iterdir() if path != run.lock] if folder.exists() else []
        if there and not run.config.exists():
            raise UserError(
                f"--overwrite: {folder} does not look like a run folder (no config.yaml); delete it yourself"
            )
        for path in there:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return None
    own = ckpt_path == "last" or (
        ckpt_path is not None and Path(ckpt_path).resolve().parent == run.checkpoints.resolve()
    )
    if run.finished and (again or not own):
        raise UserError(
            f"{folder} holds a finished run; train it further with --ckpt_path last and a larger --trainer.max_steps "
            "or max_epochs, add --overwrite to replace it, or give another --trainer.default_root_dir"
        )
    if ckpt_path == "last":
        if newest is None:
            raise UserError(f"--ckpt_path last: no checkpoint in {run.checkpoints}; leave it out to start the run")
        return str(newest)
    if ckpt_path is not None:
        if not Path(ckpt_path).exists():
            raise UserError(f"--ckpt_path: no such file {ckpt_path}")
        given = Path(ckpt_path).resolve()
        if newest is not None and given.parent == newest.resolve().parent and step_of(newest) > step_of(given):
            raise UserError(
                f"--ckpt_path {ckpt_path}: the run has gone on to {newest.name}, which `last` would mean again; move "
                "that one away first, or go on from here in another --trainer.default_root_dir"
            )
        return str(given)
    if newest is not None:
        raise UserError(f"{folder} holds an unfinished run; continue it with --ckpt_path last or add --overwrite")
    return None


def short_restore(trainer: pl.Trainer, checkpoint: str | None) -> None:
    """From now on a checkpoint that does not fit the run is said in a sentence, whatever its content makes raise."""

    def told(restore: Callable[..., None]) -> Callable[..., None]:
        @wraps(restore)
        def restored(*args: Any, **options: Any) -> None:
            try:
                restore(*args, **options)
            except UserError:
                raise
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise UserError(f"{checkpoint} does not fit this run ({reason})") from error

        return restored

    connector: Any = trainer._checkpoint_connector
    for name in ("_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, told(getattr(connector, name)))
