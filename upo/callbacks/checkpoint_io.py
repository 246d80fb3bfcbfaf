"""Checkpoints that are complete or not there: one file, or the folder of a run whose ranks each held a part."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.tensor import DTensor

from upo.callbacks.checkpoints import Checkpoints
from upo.models.checkpoint_files import load, read_folder
from upo.runtime.atomic_files import partial_of, written_at_once
from upo.runtime.checksums import Hashed, as_text, check_sums, sums_file
from upo.runtime.collectives import first_on_node
from upo.runtime.disk import check_room, told_when_full

__all__ = ["AtomicCheckpointIO", "Checkpoints"]  # YAMLs name the second one by this module too


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, on the same file system, and renames: a killed save leaves the old one whole.

    Each file gets its sha256 beside it, which is compared before it is read, once on each machine. Reads folders too: a
    run that was sharded goes on without.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        sums = sums_file(path)
        check_room(path, bytes_of(checkpoint))
        with told_when_full(path), written_at_once(sums) as new_sums, written_at_once(path, synced=True) as partial:
            with partial.open("wb") as file:
                torch.save(checkpoint, hashed := Hashed(file))  # type: ignore[arg-type]
            new_sums.write_text(as_text({path.name: hashed.sha256()}))
            sums.unlink(missing_ok=True)  # a kill must not leave the old sum beside the new file

    def remove_checkpoint(self, path: Any) -> None:
        """A folder loses its name first: half deleted, and newer for that, it would be taken for the latest."""
        path = Path(path)
        if path.is_dir() and not path.is_symlink():
            path = path.rename(partial_of(path))
        super().remove_checkpoint(path)
        sums_file(path).unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(path)
        if first_on_node():
            check_sums(path)
        if not path.is_dir():
            return load(path, map_location)
        content = read_folder(path)
        optimizers = [content.pop(name) for name in sorted(content) if name.startswith("optimizer_")]
        return content | {"optimizer_states": [_numbered(state) for state in optimizers]}


def bytes_of(checkpoint: Any) -> int:
    """What saving takes, of a sharded run this rank's part of it; tensors that share memory count once."""
    sizes: dict[Any, int] = {}

    def visit(x: Any) -> Iterator[int]:
        if isinstance(x, Tensor):
            x = x.to_local() if isinstance(x, DTensor) else x
            plain = type(x) in (Tensor, torch.nn.Parameter)  # others may have no memory of their own
            sizes[(x.device, x.data_ptr()) if plain else id(x)] = x.nbytes
        elif isinstance(x, dict):
            for value in x.values():
                yield from visit(value)
        elif isinstance(x, list | tuple):
            for value in x:
                yield from visit(value)
        elif isinstance(x, bytes | str):
            yield len(x)

    return sum(visit(checkpoint)) + sum(sizes.values())


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state by number of the parameter instead of its name."""
    groups = [state["param_groups"][i] for i in sorted(state["param_groups"])]
    number = {name: i for i, name in enumerate(name for group in groups for name in group["params"])}
    return {
        "state": {number[name]: values for name, values in state.get("state", {}).items()},
        "param_groups": [group | {"params": [number[name] for name in group["params"]]} for group in groups],
    }
