"""Checkpoints on disk: found, read without running code, and what of them makes a policy."""

import io
import pickle
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from upo.errors import UserError
from upo.runtime.run_folder import RunPaths

POLICY = "policy.model."
"""How the policy's weights are called in a checkpoint, before their own names."""


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


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint that a .ckpt path or a run folder means; None where `path` is neither.

    Raises:
        UserError: a run folder without a checkpoint, or no such .ckpt.
    """
    if path.suffix == ".ckpt":
        if not path.exists():
            raise UserError(f"no such checkpoint: {path}")
        return path
    run = RunPaths(path)
    if not run.checkpoints.is_dir() and not run.config.is_file():
        return None
    if (newest := latest(path)) is None:
        raise UserError(f"{path} holds no checkpoint yet; train the run first: python -m upo.fit --config ...")
    return newest


def read_checkpoint(file: Path, mmap: bool = False) -> dict[str, Any]:
    """What a run saved: tensors and plain types only; of a sharded run all but the optimizer's states.

    Args:
        mmap: leave a file's tensors on the disk until they are used.

    Raises:
        UserError: broken, or not a checkpoint of this package.
    """
    try:
        if file.is_dir():
            content = read_folder(file, "state_dict")
        else:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # what a broken file makes the unpickler raise can be anything
        raise UserError(f"{file} is broken or no checkpoint ({type(error).__name__}); take another one") from error
    if not isinstance(content, dict) or not {"state_dict", "policy_files"} <= content.keys():
        raise UserError(f"{file} holds no policy: it was not written by upo.fit")
    return content


@contextmanager
def policy_folder(content: dict[str, Any]) -> Iterator[str]:
    """A Hugging Face folder without weights, for as long as it is looked at: configuration and tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in content["policy_files"].items():
            (Path(folder) / name).write_bytes(data)
        yield folder


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run folder."""
    found = [p for p in RunPaths(folder).checkpoints.glob("*.ckpt") if not p.is_symlink()]
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
