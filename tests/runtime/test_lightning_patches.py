"""Cheaper logging changes no value."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric

import upo.runtime.lightning_patches as quick_logs


class Logs(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.seen: list[dict[str, float]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("mean", torch.tensor(float(batch_idx)), on_step=True, on_epoch=True, batch_size=batch_idx + 1)
        self.log("largest", torch.tensor(float(-batch_idx)), on_step=False, on_epoch=True, reduce_fx="max")
        self.log("plain", batch_idx * 0.5)
        return self.layer(batch).sum()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen.append({name: float(x) for name, x in self.trainer.callback_metrics.items()})

    def on_train_epoch_end(self) -> None:
        self.seen.append({name: float(x) for name, x in self.trainer.callback_metrics.items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def logged(folder: Path) -> list[dict[str, float]]:
    module, quiet = Logs(), {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=2, logger=False, accelerator="cpu", default_root_dir=folder, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(3, 2)))
    return [*module.seen, {name: float(x) for name, x in trainer.callback_metrics.items()}]


def test_values_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ResultMetric, "to", quick_logs._move)
    plain = logged(tmp_path)
    moved = 0

    def count(*args: Any, **kwargs: Any) -> Any:
        nonlocal moved
        moved += 1
        return quick_logs_move(*args, **kwargs)

    quick_logs_move = quick_logs._move
    monkeypatch.setattr(quick_logs, "_move", count)
    quick_logs.quick_logs()
    assert logged(tmp_path) == plain and moved == 0
    assert plain[-1]["mean_epoch"] == pytest.approx((0 * 1 + 1 * 2 + 2 * 3) / 6) and plain[-1]["largest"] == 0


def test_a_record_on_another_device_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ResultMetric, "to", _ResultMetric.to)  # undone at the end
    quick_logs.quick_logs()
    results: Any = pl.trainer.connectors.logger_connector.result._ResultCollection(training=True)
    results.log("f", "x", torch.tensor(1.0))
    results.log("f", "x", torch.tensor(1.0, device="meta"))
    assert results["f.x"].value.device == results["f.x"].cumulated_batch_size.device == torch.device("meta")
