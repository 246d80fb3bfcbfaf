"""Everything that a run leaves in its folder besides metrics and checkpoints."""

import json
import platform
import subprocess
from datetime import date
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import SaveConfigCallback

from upo.callbacks.curves import draw_curves
from upo.callbacks.logger_runs import log_configuration, remember
from upo.callbacks.metrics_csv import MetricsCSV
from upo.callbacks.progress import check_length, check_turning_points, nothing_left, stand_at
from upo.errors import UserError
from upo.runtime.atomic_files import write_json
from upo.runtime.console import wide_console
from upo.runtime.run_folder import RunPaths

PACKAGES = ("upo", "torch", "lightning", "transformers", "tokenizers", "datasets", "torchmetrics")


class RunFolder(SaveConfigCallback):
    """Writes config.yaml, environment.json, data_report.json when a run starts; curves.png, summary.json at its end."""

    _last_row: dict[str, float] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing: the data report is not there yet."""

    @cached_property
    def plain_config(self) -> dict[str, Any]:
        """The resolved config in plain types."""
        return json.loads(self.parser.dump(self.config, format="json", skip_none=False))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        run = RunPaths(trainer.default_root_dir)
        run.folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, run.config, skip_none=False, overwrite=True, multifile=False)
        data = trainer.datamodule  # type: ignore[attr-defined]
        fingerprint = data.read.train.fingerprint()
        if trainer.ckpt_path is not None:
            self._check_data(Path(trainer.ckpt_path), fingerprint)
        write_json(run.environment, environment() | {"started": data.first_day, "data": fingerprint})
        report = data.report
        write_json(run.data_report, report.to_dict())
        wide_console().print(report.table())
        log_configuration(trainer.loggers, self.plain_config)
        remember(trainer.loggers, run.folder)

    def _check_data(self, checkpoint: Path, fingerprint: str) -> None:
        """Refuses to go on with other training data, unless that is allowed."""
        try:
            before = json.loads(RunPaths.of_checkpoint(checkpoint).environment.read_text())["data"]
        except (OSError, ValueError, LookupError, TypeError):  # of an earlier version, or lying alone
            return
        if before != fingerprint:
            text = f"the training data, or their tokens, are other than those that {checkpoint} was trained with"
            if not self.config.allow_changes:
                raise UserError(f"{text}; restore them, add --allow_changes to go on with these, or start a new run")
            print(f"--allow_changes: {text}")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and (steps := data.steps_of_epoch()) is not None:
            check_length(trainer, steps, len(data.train), data.pairs_per_step)
            method: Any = pl_module
            check_turning_points(trainer, method.turning_points)
        run = RunPaths(trainer.default_root_dir)
        if trainer.is_global_zero and run.finished:  # it goes on, and so is not finished any more
            run.summary.unlink()
            if run.export.exists():  # a later stage would take it for this run's model
                run.export.rename(run.folder / f"export-{trainer.global_step}")
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.continue_from(trainer.global_step, self._last_row)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the step's metrics, which reach the loggers only after the save, and repairs Lightning's progress."""
        step, known = trainer.global_step - 1, {}
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.flush()
                known = logger.row_of(step)
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("train/", "speed/"))}
        checkpoint["config"] = self.plain_config
        checkpoint["metrics_row"] = {"step": float(step)} | metrics | known
        loop = checkpoint["loops"]["fit_loop"]
        taken = loop["epoch_loop.batch_progress"]["current"]["processed"]
        if taken < trainer.num_training_batches:
            # A run that max_steps ends within an epoch counts it as processed; after a resume at the end of an epoch
            # the next one is not counted as begun.
            epoch = trainer.datamodule.epochs_before(step + 1 - taken, trainer.num_training_batches)  # type: ignore[attr-defined]
            for counts in loop["epoch_progress"].values():
                counts |= {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._last_row = checkpoint.get("metrics_row")
        step, steps = checkpoint["global_step"], trainer.datamodule.steps_of_epoch()  # type: ignore[attr-defined]
        if not step or steps is None:
            return
        run = RunPaths(trainer.default_root_dir)
        if run.finished and nothing_left(trainer, step, steps):
            raise UserError(
                f"{run.folder} holds a finished run of {step} steps ({step / steps:.3g} epochs), and nothing is left "
                f"to do; to train on, raise --trainer.max_steps ({trainer.max_steps}) or --trainer.max_epochs "
                f"({trainer.max_epochs})"
            )
        stand_at(checkpoint["loops"]["fit_loop"], step, steps)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.interrupted:
            return
        for logger in trainer.loggers:
            logger.finalize("success")
        if trainer.max_steps != 0:  # a model that is evaluated as it is has no curves
            method: Any = pl_module
            draw_curves(Path(trainer.default_root_dir), method.turning_points)


def summarize(folder: Path, values: dict[str, float]) -> None:
    """Writes summary.json, flat names to numbers: its presence says that the run is complete."""
    write_json(RunPaths(folder).summary, {k: float(v) for k, v in sorted(values.items())})


def first_day(*runs: RunPaths) -> str:
    """When a run first started, YYYY-MM-DD, by the first of its folders that knows; today where none does."""
    for run in runs:
        try:
            return json.loads(run.environment.read_text())["started"]
        except (OSError, ValueError, KeyError):
            continue
    return date.today().isoformat()


def environment() -> dict[str, str]:
    """Versions and the commit that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return found | ({"commit": git.stdout.strip()} if git.returncode == 0 else {})
