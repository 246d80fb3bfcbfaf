"""What a run says of itself where its output is a file."""

from types import SimpleNamespace
from typing import Any

import pytest

import upo.callbacks.progress_lines as progress_lines
from upo.callbacks.progress_lines import ProgressLines


def lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, steps: int, **changes: Any) -> list[str]:
    """What is printed of a run that was resumed at step 10 of 100, with 20 seconds a step."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress_lines, "time", SimpleNamespace(monotonic=lambda: clock.now))
    known = {"is_global_zero": True, "progress_bar_callback": object(), "estimated_stepping_batches": 100}
    trainer: Any = SimpleNamespace(**known | {"global_step": 10, "progress_bar_metrics": {"train/loss": 0.5}} | changes)
    callback = ProgressLines()
    callback.on_train_start(trainer, None)
    for _ in range(steps):
        clock.now += 20
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, None, None, None, 0)
    return capsys.readouterr().out.splitlines()


def test_a_line_a_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(capsys, monkeypatch, 7) == [
        "step 13/100, 29 min left: train/loss 0.5",
        "step 16/100, 28 min left: train/loss 0.5",
    ]


def test_a_run_without_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(capsys, monkeypatch, 3, estimated_stepping_batches=float("inf")) == ["step 13: train/loss 0.5"]


@pytest.mark.parametrize("quiet", [{"is_global_zero": False}, {"progress_bar_callback": None}])
def test_other_ranks_and_runs_without_a_bar_say_nothing(quiet, capsys, monkeypatch) -> None:
    assert lines(capsys, monkeypatch, 7, **quiet) == []


def test_a_terminal_has_its_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert lines(capsys, monkeypatch, 7) == []
