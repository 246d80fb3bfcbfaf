"""Patches change no value, do nothing where their target is gone, and are still needed."""

import gc
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.trainer.connectors.logger_connector import result
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric

from upo.runtime import lightning_patches


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


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Lightning's own way to move a record, in force until the test patches it."""
    move = _ResultMetric.to
    move = getattr(move, "__wrapped__", move)
    monkeypatch.setattr(_ResultMetric, "to", move)  # undone at the end
    return move


def test_values_are_the_same(tmp_path: Path, plain: Callable[..., Any]) -> None:
    moved = []

    def count(record: Any, *args: Any, **kwargs: Any) -> Any:
        moved.append(record)
        return plain(record, *args, **kwargs)

    _ResultMetric.to = count
    expected = logged(tmp_path)
    assert len(moved) >= 3 * 6, "Lightning no longer looks through the record: quick_logs can go"
    moved.clear()
    lightning_patches.quick_logs()
    assert logged(tmp_path) == expected and not moved
    last = expected[-1]
    assert last["mean_epoch"] == pytest.approx((0 * 1 + 1 * 2 + 2 * 3) / 6) and last["largest"] == 0


def test_a_record_on_another_device_is_moved(plain: Callable[..., Any]) -> None:
    lightning_patches.quick_logs()
    results: Any = result._ResultCollection(training=True)
    results.log("f", "x", torch.tensor(1.0))
    results.log("f", "x", torch.tensor(1.0, device="meta"))
    assert results["f.x"].value.device == results["f.x"].cumulated_batch_size.device == torch.device("meta")


def test_logs_are_patched_once(plain: Callable[..., Any]) -> None:
    lightning_patches.quick_logs()
    once = _ResultMetric.to
    lightning_patches.quick_logs()
    assert _ResultMetric.to is once and once.__wrapped__ is plain


def test_without_lightnings_private_names_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Renamed:
        pass

    monkeypatch.setattr(result, "_ResultMetric", Renamed)
    lightning_patches.quick_logs()
    assert not hasattr(Renamed, "to")
    monkeypatch.delattr(result, "_ResultMetric")
    lightning_patches.quick_logs()


def test_a_record_with_other_fields_is_left_to_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def to(self, device: str) -> str:
            return f"moved to {device}"

    monkeypatch.setattr(result, "_ResultMetric", Other)
    lightning_patches.quick_logs()
    assert Other().to("cpu") == "moved to cpu"


def test_torchmetrics_still_loads_scipy_signal_for_one_name() -> None:
    """Otherwise the stand-in can go, or must have more."""
    text = Path(find_spec("torchmetrics").origin).with_name("functional").joinpath("audio/__init__.py").read_text()
    lines = [line.strip() for line in text.splitlines() if "scipy.signal" in line and not line.strip().startswith("#")]
    assert lines == [
        "import scipy.signal",
        'if not hasattr(scipy.signal, "hamming"):',
        "scipy.signal.hamming = scipy.signal.windows.hamming",
    ]


def in_a_new_process(inside: str, after: str) -> None:
    """Runs lines within and behind the patch, where nobody has imported anything yet."""
    lines = ["import sys", "from upo.runtime.lightning_patches import without_scipy_signal"]
    lines += ["with without_scipy_signal():", *(f"    {line}" for line in inside.splitlines()), *after.splitlines()]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_scipy_signal_is_not_loaded_for_one_name() -> None:
    in_a_new_process(
        "import scipy.signal\nassert hasattr(scipy.signal, 'hamming')",
        "assert not any(name.startswith('scipy.signal') for name in sys.modules)\n"
        "assert scipy.signal.__file__ and scipy.signal.windows.hamming(3)[1] == 1",
    )


@pytest.mark.parametrize("line", ["from scipy.signal import windows", "import scipy.signal.windows as windows"])
def test_scipy_signal_is_there_for_who_needs_it(line: str) -> None:
    in_a_new_process(
        f"{line}\nassert windows.hamming(3)[1] == 1",
        "import scipy.signal\nassert scipy.signal.__file__ and sys.modules['scipy.signal'] is scipy.signal",
    )


def test_a_module_that_is_loaded_stays() -> None:
    import scipy.signal

    with lightning_patches.without_scipy_signal():
        assert sys.modules["scipy.signal"] is scipy.signal and scipy.signal.__file__
    assert sys.modules["scipy.signal"] is scipy.signal


@pytest.mark.parametrize("enabled", [True, False])
def test_what_is_imported_is_not_collected(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector is as it was afterwards, and has nothing to look through."""
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with lightning_patches.frozen_imports():
            assert not gc.isenabled() and not frozen
        assert frozen == [enabled]
    finally:
        (gc.enable if before else gc.disable)()


def test_the_patches_themselves_load_nothing() -> None:
    code = (
        "import sys, upo.runtime.lightning_patches\nprint(sorted({'torch', 'lightning', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_stays_frozen_at_the_end() -> None:
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))
from upo.runtime.lightning_patches import frozen_imports
with frozen_imports():
    import json
assert gc.get_freeze_count()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["0"], done.stderr
