"""Random states travel with the checkpoint: Lightning restores none, and a resumed run would drift."""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch


class RandomState(pl.Callback):
    """Saves and restores the states of Python's, NumPy's and torch's generators (of rank 0)."""

    def __init__(self) -> None:
        self._restore: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        version, internal, gauss = random.getstate()
        name, keys, *rest = np.random.get_state()
        state: dict[str, Any] = {
            "python": [version, list(internal), gauss],
            "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restore = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After everything that draws while it sets up."""
        if self._restore is None:
            return
        version, internal, gauss = self._restore["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = self._restore["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(self._restore["torch"].cpu())
        if torch.cuda.is_available() and "cuda" in self._restore:
            torch.cuda.set_rng_state(self._restore["cuda"].cpu())
        self._restore = None
