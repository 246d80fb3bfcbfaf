"""What loggers get besides metrics: evaluation figures, samples, artifacts.

Loggers are named by class path under `trainer.logger`; all of them get the resolved configuration and every metric.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from upo.callbacks.logger_runs import prepare
from upo.callbacks.metrics_csv import MetricsCSV
from upo.callbacks.spared import lost, spared
from upo.errors import UserError
from upo.runtime.class_paths import TRUST
from upo.runtime.markdown import cell
from upo.runtime.run_folder import RunPaths

SAMPLES = 100
"""Prompts in a logger's table of samples; samples.jsonl holds all."""
PLAIN = {
    *("name", "save_dir", "dir", "version", "offline", "id", "anonymous", "project", "log_model", "experiment"),
    *("prefix", "checkpoint_name", "add_file_policy", "group", "tags", "notes", "job_type", "entity", "config"),
}
"""Options of a W&B logger that neither name a server, which would get the key, nor send code."""
REPORT = ("*.yaml", "*.json", "*.jsonl", "*.csv", "*.png", "*.html", "*.md")
"""Files of a run folder that make its report."""


def log_evaluation(
    loggers: Sequence[Logger], figures: Mapping[str, float], folder: Path, step: int | None = None
) -> None:
    """Sends an evaluation's figures to all loggers, and its samples and report to those that show them.

    Args:
        figures: flat name to number; an interval's ends follow their figure as `_low` and `_high`.
        folder: where `samples.jsonl` and `report.html` lie.
        step: optimizer steps that the evaluated policy has taken; null: behind everything that was logged.
    """
    run = RunPaths(folder)
    rows = read_samples(run.samples, SAMPLES)
    for logger in loggers:
        if lost(logger) is None and not isinstance(logger, MetricsCSV):  # evaluation.json and summary.json stand beside
            with spared(logger):
                _log_evaluation(logger, figures, rows, run, step)


def _log_evaluation(
    logger: Logger, figures: Mapping[str, float], rows: list[dict[str, Any]], run: RunPaths, step: int | None
) -> None:
    logger.log_metrics(dict(figures), step)
    log_table(logger, "evaluation/samples", rows, step)
    if isinstance(logger, WandbLogger) and run.report_html.is_file():
        import wandb

        picture = wandb.Image(str(run.evaluation_picture))
        page = wandb.Html(run.report_html.read_text(), inject=False)
        logger.experiment.log({"evaluation/report": page, "evaluation/picture": picture})
    logger.save()


def log_table(logger: Logger, name: str, rows: Sequence[Mapping[str, Any]], step: int | None) -> None:
    """Rows, to a logger that can show them: W&B as a table, TensorBoard as text."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if rows and isinstance(logger, WandbLogger):
        logger.log_table(name, columns, [[row.get(c) for c in columns] for row in rows], step=step)
    elif rows and isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(name, markdown(columns, rows), step)


def read_samples(file: Path, number: int) -> list[dict[str, Any]]:
    """The first prompts of a samples.jsonl: what was asked, a text a writer, then the scores a column each."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(number), strict=False)]
    return [_readable(row) for row in rows]


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """A line of samples.jsonl as a flat row; those of earlier versions hold no scores, and the prompt's key alone."""
    key, scores = row["prompt"].replace("\x1f", ": ").replace("\x1e", "\n"), row.get("scores", {})
    texts = {name: x for name, x in row.items() if name not in ("prompt", "asked", "model_reads", "scores")}
    flat = {f"{name} {score}": x for name, own in scores.items() for score, x in own.items()}
    return {"prompt": row.get("asked", key), **texts, **flat}


def markdown(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table; what cells hold is shown as it is."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(cell, cells)) + " |"

    return "\n".join(
        [line(columns), line(["---"] * len(columns)), *(line([str(row.get(c, "")) for c in columns]) for row in rows)]
    )


def close(loggers: Sequence[Logger], folder: Path, failed: bool = False) -> None:
    """Ends W&B runs, so that the next run of this process starts its own; with `log_model` the report goes along.

    All that they logged is on the disk then. W&B's `finish` alone leaves up to 32 KiB, the report among them, with a
    service process, which writes them a moment later if it still lives.

    Args:
        failed: the run has not come to its end and has no report.
    """
    ours = [logger for logger in loggers if isinstance(logger, WandbLogger) and logger._experiment is not None]
    if not ours:
        return
    import wandb

    for logger in ours:
        with spared(logger):
            if logger._log_model and not failed:
                report = wandb.Artifact(f"report-{logger.experiment.id}", type="report")
                for file in sorted(file for pattern in REPORT for file in folder.glob(pattern)):
                    report.add_file(str(file), name=file.name)
                logger.experiment.log_artifact(report)
            logger.experiment.finish(exit_code=int(failed))
    wandb.teardown()


@contextmanager
def closed_early(loggers: Sequence[Logger], folder: Path) -> Iterator[None]:
    """Where training ends by a signal or an error, W&B has its last step, too."""
    try:
        yield
    except BaseException:
        close(loggers, folder, failed=True)
        raise


def losses(loggers: Sequence[Logger]) -> dict[str, float]:
    """What summary.json says of loggers that failed: how many; nothing where none did. Each is named in a line."""
    reasons = [reason for logger in loggers if (reason := lost(logger)) is not None]
    for reason in reasons:
        print(reason)
    return {"lost_loggers": float(len(reasons))} if reasons else {}


@contextmanager
def same_run(folder: Path, trust: bool) -> Iterator[list[Logger]]:
    """The W&B logger that the run in `folder` had, continuing its W&B run; empty where it had none.

    Args:
        trust: whether it may have any option; without, one of `PLAIN` alone.
    """
    import yaml

    config = yaml.safe_load(RunPaths(folder).config.read_text()) or {}
    given = (config.get("trainer") or {}).get("logger")
    given = given if isinstance(given, list) else [given]
    ours = [x for x in given if isinstance(x, dict) and str(x.get("class_path")).endswith("WandbLogger")]
    if not ours or not RunPaths(folder).wandb_id.is_file():
        yield []
        return
    options: dict[str, Any] = (ours[0].get("init_args") or {}) | (ours[0].get("dict_kwargs") or {})
    options = {name: x for name, x in options.items() if x is not None}  # config.yaml lists all that wandb.init takes
    if not trust and (other := sorted(options.keys() - PLAIN)):
        raise UserError(f"{RunPaths(folder).config} sets the W&B logger's {other[0]}; {TRUST}, or name another --out")
    options["log_model"] = False
    logger = WandbLogger(**options)
    prepare([logger], folder)
    try:
        yield [logger]
    finally:
        close([logger], folder)
