"""Checkpoints that are complete or not there: one file, or the folder of a run whose ranks each held a part."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from upo.models.checkpoint_files import read_folder
from upo.runtime.atomic_files import partial_of, written_at_once


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, on the same file system, and renames: a killed save leaves the old one whole.

    Reads folders too: a run that was sharded goes on without.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with written_at_once(Path(path), synced=True) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)

    def remove_checkpoint(self, path: Any) -> None:
        """A folder loses its name first: half deleted, and newer for that, it would be taken for the latest."""
        path = Path(path)
        if path.is_dir() and not path.is_symlink():
            path = path.rename(partial_of(path))
        super().remove_checkpoint(path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        if not Path(path).is_dir():
            return super().load_checkpoint(path, map_location, weights_only)
        content = read_folder(Path(path))
        optimizers = [content.pop(name) for name in sorted(content) if name.startswith("optimizer_")]
        return content | {"optimizer_states": [_numbered(state) for state in optimizers]}


class Checkpoints(ModelCheckpoint):
    """Lightning's, and the end of training is saved too where it falls between two saves."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._last_global_step_saved != trainer.global_step:
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        super().on_train_end(trainer, pl_module)


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state by number of the parameter instead of its name."""
    groups = [state["param_groups"][i] for i in sorted(state["param_groups"])]
    number = {name: i for i, name in enumerate(name for group in groups for name in group["params"])}
    return {
        "state": {number[name]: values for name, values in state.get("state", {}).items()},
        "param_groups": [group | {"params": [number[name] for name in group["params"]]} for group in groups],
    }
