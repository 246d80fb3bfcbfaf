"""Draws go on where they were."""

from pathlib import Path
from unittest.mock import Mock

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from training import fit, make

from upo.callbacks.random_state import RandomState
from upo.methods import DPO


class Draws(pl.Callback):
    """One number of NumPy's and of PyTorch's a step."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[float, float]] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, *_) -> None:
        self.seen[trainer.global_step] = np.random.rand(), torch.rand(()).item()


def test_a_resumed_run_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    whole, late = Draws(), Draws()
    fit(make(DPO), tmp_path, RandomState(), whole, steps=4, save_every=2)
    fit(make(DPO), tmp_path, RandomState(), late, steps=4, ckpt_path=str(tmp_path / "step=2.ckpt"))
    assert late.seen == {step: whole.seen[step] for step in (2, 3)}


@pytest.mark.parametrize(("rank", "ranks", "expected"), [(0, 2, 0), (1, 2, 1), (1, 3, 0)])
def test_each_rank_gets_its_own_state_back(rank: int, ranks: int, expected: int) -> None:
    """On another number of ranks all take rank 0's."""
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(RandomState().state_dict())
    callback = RandomState()
    callback.load_state_dict(states[0] | {"ranks": states})
    callback.on_train_start(Mock(spec=pl.Trainer, global_rank=rank, world_size=ranks), Mock(spec=pl.LightningModule))
    drawn = torch.rand(3)
    torch.manual_seed(expected)
    assert torch.equal(drawn, torch.rand(3))
