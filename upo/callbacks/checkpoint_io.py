"""Checkpoints that are complete or not there."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, on the same file system, and renames: a killed save leaves the old one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run folder."""
    found = [p for p in (folder / "checkpoints").glob("*.ckpt") if not p.is_symlink()]
    return max(found, key=lambda p: (p.stat().st_mtime_ns, p.name), default=None)
