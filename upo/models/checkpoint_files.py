"""Checkpoints on disk: found, read without running code, and what of them makes a policy."""

import io
import pickle
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from upo.errors import UserError
from upo.runtime.checksums import check_sums
from upo.runtime.run_folder import RunPaths, Which

POLICY = "policy.model."
"""How the policy's weights are called in a checkpoint, before their own names."""

REST = "meta.pt"
"""In a folder: everything but weights and optimizer states."""

WEIGHTS = "model"
"""What Lightning's FSDPStrategy calls the `state_dict` in a folder."""

RESUMED = {
    "state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict,
    "global_step": int, "epoch": int,
}  # fmt: skip
"""What training goes on from."""

KNOWN = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        *("Metadata", "MetadataIndex", "ChunkStorageMetadata", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    )
} | {("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout")}
KNOWN |= {("torch", "Size"), ("torch", "device"), ("pathlib", "PosixPath"), ("pathlib", "Path")}
"""What a folder's table of contents, a pickle, may be made of."""


def find_checkpoint(path: Path, which: Which = "last") -> Path | None:
    """The checkpoint that a .ckpt path or a run folder means; None where `path` is neither.

    Raises:
        UserError: a run folder without (such) a checkpoint, or no such .ckpt.
    """
    if path.suffix == ".ckpt":
        if not path.exists():
            raise UserError(f"no such checkpoint: {path}")
        if which == "best":
            raise UserError(f"{path} is one checkpoint; name the run folder to take its best")
        return path.resolve() if path.is_symlink() else path  # its run and its sum go by its own name
    run = RunPaths(path)
    if not run.checkpoints.is_dir() and not run.config.is_file():
        return None
    if which == "best" and not run.best.exists():
        raise UserError(
            f"{path} has no best checkpoint: set checkpoint.monitor (a metric that is logged at each validation, see "
            "trainer.val_check_interval) before it is trained, or take the last one"
        )
    if (found := run.best.resolve() if which == "best" else latest(path)) is None:
        raise UserError(f"{path} holds no checkpoint yet; train the run first: python -m upo.fit --config ...")
    return found


def read_checkpoint(file: Path, mmap: bool = False) -> dict[str, Any]:
    """What a run saved: tensors and plain types only; of a sharded run all but the optimizer's states.

    Args:
        mmap: leave a file's tensors on the disk until they are used.

    Raises:
        UserError: broken, changed after it was written, or not a checkpoint of this package.
    """
    with _readable(file):
        check_sums(file)
        content = read_folder(file, "state_dict") if file.is_dir() else load(file, mmap=mmap)
    return _of_a_policy(content, file)


def load(file: Path, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """The content of a checkpoint's file, tensors and plain types only.

    Raises:
        UserError: broken, or something else is in it.
    """
    with _readable(file):
        return torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)


def check_resumable(file: Path) -> None:
    """Looks through a checkpoint before Lightning and PyTorch read it, whose own readers would run what is in it.

    Raises:
        UserError: broken, changed after it was written, or nothing that training can go on from.
    """
    with _readable(file):
        check_sums(file)
        parts = {"state_dict": {}, "optimizer_states": []}
        content = parts | read_folder(file, tensors=False) if file.is_dir() else load(file, mmap=True)
    _of_a_policy(content, file)
    wrong = [name for name, kind in RESUMED.items() if not isinstance(content.get(name), kind)]
    if not wrong and "epoch_loop.batch_progress" not in content["loops"].get("fit_loop", {}):
        wrong = ["loops"]
    if not content.get("optimizer_states") and not isinstance(content.get("optimizer_0"), dict):
        wrong += ["optimizer_states"]
    if wrong:
        raise UserError(f"{file} holds weights, but not all that training goes on from ({wrong[0]}); take another one")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Around reading a checkpoint: whatever goes wrong is said in a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # what a broken file makes the unpickler raise can be anything
        raise UserError(f"{file} is broken or no checkpoint ({type(error).__name__}); take another one") from error


def _of_a_policy(content: Any, file: Path) -> dict[str, Any]:
    """The content, which is what `upo.fit` writes and names no file outside of the folder that it will lie in."""
    if not isinstance(content, dict) or not {"state_dict", "policy_files"} <= content.keys():
        raise UserError(f"{file} holds no policy: it was not written by upo.fit")
    weights, files = content["state_dict"], content["policy_files"]
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(x, torch.Tensor) for name, x in weights.items()
    ):
        raise UserError(f"{file} holds something else than tensors among its weights: it was not written by upo.fit")
    if not isinstance(files, dict) or not all(isinstance(data, bytes) for data in files.values()):
        raise UserError(f"{file} holds something else than files of a model: it was not written by upo.fit")
    if unsafe := [name for name in files if not is_plain(name)]:
        raise UserError(
            f"{file} would write a file outside of its folder ({str(unsafe[0])[:100]!r}), so it was not written by "
            "upo.fit; do not use it"
        )
    return content


def is_plain(name: Any) -> bool:
    """Whether a file's name leads nowhere else, on any system."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and 0 < len(name) <= 128
        and name not in (".", "..")
        and name == PurePosixPath(name).name == PureWindowsPath(name).name
    )


@contextmanager
def policy_folder(content: dict[str, Any]) -> Iterator[str]:
    """A Hugging Face folder without weights, for as long as it is looked at: configuration and tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in content["policy_files"].items():
            (Path(folder) / name).write_bytes(data)
        yield folder


def latest(folder: Path) -> Path | None:
    """The complete checkpoint of a run folder that has taken the most steps; of several the one written last."""
    found = [p for p in RunPaths(folder).checkpoints.glob("*.ckpt") if not p.is_symlink()]
    return max(found, key=lambda p: (step_of(p), p.stat().st_mtime_ns, p.name), default=None)


def step_of(file: Path) -> int:
    """Optimizer steps that a checkpoint has taken: by its name, else by its content; -1 where nothing says so."""
    if found := re.search(r"step=(\d+)", file.name):
        return int(found[1])
    try:
        content = torch.load(file / REST if file.is_dir() else file, "cpu", weights_only=True, mmap=file.is_file())
        return int(content["global_step"])
    except Exception:  # broken: whoever reads it says so
        return -1


def settings_in(file: Path) -> Any:
    """The configuration that a checkpoint's run had, as it was resolved then; None where it holds none."""
    with _readable(file):
        return load(file / REST if file.is_dir() else file, mmap=file.is_file()).get("config")


def read_folder(folder: Path, *parts: str, tensors: bool = True) -> dict[str, Any]:
    """A sharded checkpoint as one process sees it, without ranks; nothing in it can run code.

    Args:
        parts: top-level names to read, e.g. `state_dict`; all by default.
        tensors: whether to read those of weights and optimizer states.
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
            if not tensors:
                continue
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
