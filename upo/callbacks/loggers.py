"""What loggers get besides metrics: one W&B run for one run folder, evaluation figures, samples, artifacts.

Loggers are named by class path under `trainer.logger`; all of them get the resolved configuration and every metric.
"""

import json
import netrc
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from upo.callbacks.metrics_csv import MetricsCSV
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


def prepare(logger: Logger, folder: Path) -> None:
    """Gives a W&B logger the run that belongs to the folder: the same before and after a resume, named like it.

    It is offline where neither the environment nor `wandb login` has left a key.
    """
    if not isinstance(logger, WandbLogger):
        return
    offline = not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") or _logged_in_to_wandb())
    if offline:  # also with `log_model`: files wait beside the run until it is synchronised
        logger._offline = True
        logger._wandb_init["mode"] = "offline"
    else:
        logger._wandb_init["resume"] = logger._wandb_init.get("resume") or "allow"
    file = RunPaths(folder).wandb_id
    if rank_zero_only.rank == 0 and not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(logger._id or uuid.uuid4().hex[:8])
    if file.exists():
        logger._id = logger._wandb_init["id"] = file.read_text()
    logger._wandb_init["name"] = logger._wandb_init.get("name") or folder.resolve().name


def _logged_in_to_wandb() -> bool:
    """Whether `wandb login` has left a key, for the public server or one's own."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


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
        if isinstance(logger, MetricsCSV):
            continue  # evaluation.json and summary.json stand beside it
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


def close(loggers: Sequence[Logger], folder: Path) -> None:
    """Ends W&B runs, so that the next run of this process starts its own; with `log_model` the report goes along.

    All that they logged is on the disk then. W&B's `finish` alone leaves up to 32 KiB, the report among them, with a
    service process, which writes them a moment later if it still lives.
    """
    ours = [logger for logger in loggers if isinstance(logger, WandbLogger) and logger._experiment is not None]
    if not ours:
        return
    import wandb

    for logger in ours:
        if logger._log_model:
            report = wandb.Artifact(f"report-{logger.experiment.id}", type="report")
            for file in sorted(file for pattern in REPORT for file in folder.glob(pattern)):
                report.add_file(str(file), name=file.name)
            logger.experiment.log_artifact(report)
        logger.experiment.finish()
    wandb.teardown()


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
    prepare(logger, folder)
    try:
        yield [logger]
    finally:
        close([logger], folder)
