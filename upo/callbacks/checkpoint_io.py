"""Checkpoints that are complete or not there: one file, or the folder of a run whose ranks each held a part."""

import io
import os
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

REST = "meta.pt"
"""In a folder: everything but weights and optimizer states."""

WEIGHTS = "model"
"""What Lightning's FSDPStrategy calls the `state_dict` in a folder."""

KNOWN = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        *("Metadata", "MetadataIndex", "ChunkStorageMetadata", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    )
} | {("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout")}
KNOWN |= {("torch", "Size"), ("torch", "device"), ("pathlib", "PosixPath"), ("pathlib", "Path")}
"""What a folder's table of contents, a pickle, may be made of."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, on the same file system, and renames: a killed save leaves the old one whole.

    Reads folders too: a run that was sharded goes on without.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def remove_checkpoint(self, path: Any) -> None:
        """A folder loses its name first: half deleted, and newer for that, it would be taken for the latest."""
        path = Path(path)
        if path.is_dir() and not path.is_symlink():
            path = path.rename(path.with_name(f".{path.name}.partial"))
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


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run folder."""
    found = [p for p in (folder / "checkpoints").glob("*.ckpt") if not p.is_symlink()]
    return max(found, key=lambda p: (p.stat().st_mtime_ns, p.name), default=None)


def read_folder(folder: Path, *parts: str) -> dict[str, Any]:
    """A sharded checkpoint as one process sees it, without ranks; nothing in it can run code.

    Args:
        parts: top-level names to read, e.g. `state_dict`; all by default.
    """
    contents = _TableOfContents(io.BytesIO((folder / ".metadata").read_bytes())).load()
    pieces = defaultdict(list)
    for index, place in contents.storage_data.items():
        pieces[index.fqn].append((index.offset, place))
    nested: dict[Any, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
    for name, kind in contents.state_dict_metadata.items():
        path = contents.planner_data[name]
        if parts and path[0] not in parts and not (path[0] == WEIGHTS and "state_dict" in parts):
            continue
        if hasattr(kind, "size"):
            value = torch.empty(kind.size, dtype=kind.properties.dtype)
            for offset, place in pieces[name]:
                piece = _load(folder, place)
                value[tuple(slice(o, o + n) for o, n in zip(offset or (), piece.shape, strict=True))] = piece
        else:
            value = _load(folder, pieces[name][0][1])
        inner = nested
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    if WEIGHTS in nested:
        nested["state_dict"] = nested.pop(WEIGHTS)
    return nested


class _TableOfContents(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN or (module == "torch" and isinstance(getattr(torch, name), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


def _load(folder: Path, place: Any) -> Any:
    with (folder / Path(place.relative_path).name).open("rb") as file:
        file.seek(place.offset)
        return torch.load(io.BytesIO(file.read(place.length)), map_location="cpu", weights_only=True)


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state by number of the parameter instead of its name."""
    groups = [state["param_groups"][i] for i in sorted(state["param_groups"])]
    number = {name: i for i, name in enumerate(name for group in groups for name in group["params"])}
    return {
        "state": {number[name]: values for name, values in state.get("state", {}).items()},
        "param_groups": [group | {"params": [number[name] for name in group["params"]]} for group in groups],
    }
