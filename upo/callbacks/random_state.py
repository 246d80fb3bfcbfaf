"""Random states travel with the checkpoint: Lightning restores none, and a resumed run would drift."""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist


class RandomState(pl.Callback):
    """Saves and restores the states of Python's, NumPy's and torch's generators of every rank.

    With another number of ranks all of them go on with rank 0's.
    """

    def __init__(self) -> None:
        self._restore: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        own = _state()
        if not (dist.is_available() and dist.is_initialized()):
            return own
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, own)
        return every[0] | {"ranks": every}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not isinstance(state_dict, dict) or not {"python", "numpy", "torch"} <= state_dict.keys():
            raise ValueError("no states of random generators")
        self._restore = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After everything that draws while it sets up."""
        if self._restore is None:
            return
        every = self._restore.get("ranks", ())
        _set(every[trainer.global_rank] if len(every) == trainer.world_size else self._restore)
        self._restore = None


def _state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    name, keys, *rest = legacy
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu())
