"""What a run's speed is said to be."""

import math
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import tiny
import torch
from tiny import groups_of
from training import fit, make, pairs_file

import upo.callbacks.throughput as throughput
from upo.callbacks.throughput import Throughput, needed, unique_tokens
from upo.data.batch import Batch, Step
from upo.data.layout import collate_responses
from upo.methods import DPO, KTO
from upo.runtime.flops import Cost

UNITS = [tiny.unit([3, 4, 5], [6, 7, 2], [8, 2]), tiny.unit([9, 9], [3, 2], [4, 5, 6, 2])]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_prompt_counts_once(layout: str) -> None:
    """3 + 2 + 1 and 2 + 1 + 3 input tokens: EOS is never read."""
    assert unique_tokens(collate_responses(groups_of(UNITS), layout, row_tokens=16, pad_id=0)) == 12


def test_needed_operations_of_a_step() -> None:
    """Forward and backward, once more through a live reference; dummies do not count, stored log-probs cost nothing."""
    responses = collate_responses(groups_of(UNITS), "packed", row_tokens=16, pad_id=0)
    cost = Cost(weights=100, scores=10, head=50)
    once = cost.of_responses(responses)
    step = Step((Batch(responses), Batch(responses, dummy=True)), {})
    assert needed(step, cost, reference=False) == 3 * once
    assert needed(step, cost, reference=True) == 4 * once


class Clock:
    """A perf_counter that advances by one second a look."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("kind", [DPO, KTO])
def test_what_is_logged(kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is looked at as a step begins, as it ends, and as the waiting begins: 1 s each."""
    monkeypatch.setattr(throughput, "time", Clock())
    logged: list[dict[str, float]] = []

    class Rows(Throughput):
        def on_train_start(self, trainer, pl_module) -> None:
            super().on_train_start(trainer, pl_module)
            self.rate = 1e9

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            row = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("speed/")}
            logged.append(row | {"tokens": batch.counts["tokens"], "seconds": 1.0 if batch_idx % 4 == 0 else 2.0})

    fit(make(kind), tmp_path, Rows(), steps=3, pairs=pairs_file(tmp_path))
    assert len(logged) == 3
    for row in logged:
        assert row["speed/pairs_per_s"] == pytest.approx(2 / row["seconds"])
        assert row["speed/response_tokens_per_s"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["speed/unique_tokens_per_s"] > row["speed/response_tokens_per_s"] / 2
        assert row["speed/data_wait"] == pytest.approx(1 - 1 / row["seconds"])
        assert 0 < row["speed/mfu"] < 1
        assert 0.05 < row["speed/peak_memory_gib"] < 100 and math.isfinite(row["speed/peak_memory_gib"])


def test_waiting_does_not_hold_validations_and_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "time", Clock())
    callback: Any = Throughput()
    trainer, module = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), pl.LightningModule()
    for event in (callback.on_validation_end, lambda t, m: callback.on_save_checkpoint(t, m, {})):
        callback.ended = 0.5
        event(trainer, module)
        callback.on_train_batch_start(trainer, module, None, 0)
        assert callback.wait == 0
    callback.ended = 0.5
    callback.on_train_batch_start(trainer, module, None, 0)
    assert callback.wait == callback.begun - 0.5 > 0


def test_no_share_of_a_rate_that_is_not_known(tmp_path: Path) -> None:
    names: set[str] = set()

    class Names(Throughput):
        def on_train_batch_end(self, trainer, *args) -> None:
            super().on_train_batch_end(trainer, *args)
            names.update(trainer.callback_metrics)

    fit(make(DPO), tmp_path, Names(), steps=1)
    assert "speed/pairs_per_s" in names and "speed/mfu" not in names
    assert sys.platform != "linux" or throughput.peak_gib(torch.device("cpu")) > 0.05
