"""One metrics.csv for the whole run: a row a step, columns named as the metrics, continued on resume."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from upo.runtime.atomic_files import written_at_once
from upo.runtime.run_folder import RunPaths


class MetricsCSV(Logger):
    """Writes `metrics.csv`; Lightning's own CSV logger would delete the old file on resume."""

    def __init__(self, folder: str):
        super().__init__()
        self.path = RunPaths(folder).metrics
        self.columns: list[str] = ["step"]
        self.row: dict[str, float] = {}
        self.written: dict[str, float] = {}

    version = ""  # type: ignore[assignment]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml stands beside."""

    @rank_zero_only
    def continue_from(self, step: int, last: dict[str, float] | None) -> None:
        """Keeps the rows before `step` of an earlier part of the run; later ones will be computed again.

        Args:
            last: the row of `step` - 1, which a killed run may not have written any more.
        """
        rows = [r for r in (read_metrics(self.path) if self.path.exists() else []) if r["step"] < step]
        if last is not None and (not rows or rows[-1]["step"] < last["step"]):
            rows.append(last)
        elif last is not None and rows[-1]["step"] == last["step"]:
            rows[-1] = last | rows[-1]
        self._rewrite(rows)
        self.written = rows[-1] if rows else {}

    def row_of(self, step: int) -> dict[str, float]:
        """What is known of a step, if it is the newest."""
        newest = self.row or self.written
        return dict(newest) if newest.get("step") == step else {}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.row and self.row["step"] != step:
            self.flush()
        elif self.written.get("step") == step:  # more about a step whose row was flushed early: take it back
            self.row = self.written
            self._rewrite(read_metrics(self.path)[:-1])
        self.row |= {"step": float(step or 0)} | {k: float(v) for k, v in metrics.items() if k != "step"}

    @rank_zero_only
    def save(self) -> None:
        """Nothing: a row is written when the next one begins."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Writes the row that is being collected."""
        row, self.row = self.row, {}
        if not row:
            return
        if new := [name for name in row if name not in self.columns]:
            rows = read_metrics(self.path) if self.path.exists() else []
            self.columns += new
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(_plain(row))
        self.written = row

    def _rewrite(self, rows: list[dict[str, float]]) -> None:
        self.written = {}
        self.columns += [name for row in rows for name in row if name not in self.columns]
        self.columns = list(dict.fromkeys(self.columns))
        with written_at_once(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(map(_plain, rows))


def last_validation(trainer: Any, data: Any, path: Path) -> dict[str, float]:
    """Figures of the run's last validation: this process's; of one that went on behind it, those in metrics.csv. Where
    there was none, one is made."""
    if len(data.val) and "val/loss" not in trainer.callback_metrics:
        rows = read_metrics(path) if trainer.is_global_zero and path.exists() else []
        known = next((row for row in reversed(rows) if "val/loss" in row), None)
        if (known := trainer.strategy.broadcast(known)) is not None:
            return {name: x for name, x in known.items() if name.startswith("val/")}
        trainer.validate(trainer.lightning_module, data, verbose=False)
    return {name: float(x) for name, x in trainer.callback_metrics.items() if name.startswith("val/")}


def _plain(row: dict[str, float]) -> dict[str, float]:
    return row | {"step": int(row["step"])}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv as {metric: value}, empty cells left out, a half-written last line too."""
    rows = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                values = {name: float(x) for name, x in row.items() if x not in ("", None)}
            except (TypeError, ValueError):
                continue
            if "step" in values:
                rows.append(values)
    return rows
