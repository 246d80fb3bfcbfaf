"""Which run of a logger belongs to a run folder: the same before and after a resume, and named like it."""

import netrc
import os
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from upo.callbacks.spared import lost, spared
from upo.runtime.atomic_files import read_json, write_json
from upo.runtime.class_paths import specs
from upo.runtime.run_folder import RunPaths

WANDB = "https://api.wandb.ai"
LONGEST_WAIT = 5.0
"""Seconds that W&B's server may take to say anything at all."""
LONGEST_PARAMETER = 250
"""Characters of a parameter that Lightning sends to MLflow."""


def set_store(trainer: Any, writes: bool) -> None:
    """Gives an MLflow logger without a store MLflow's own default: the one that Lightning names is refused by it.

    Args:
        trainer: the Trainer's part of a parsed configuration, changed in place.
        writes: whether this process logs anything; the others leave the file alone, whose tables they would race for.
    """
    for _, spec in specs(trainer):
        given = spec.get("init_args")
        if spec["class_path"].endswith(".MLFlowLogger") and given is not None and not given.get("tracking_uri"):
            folder = Path(given.get("save_dir") or ".")
            folder = Path() if folder == Path("mlruns") else folder  # Lightning's default, for files
            if writes:
                folder.mkdir(parents=True, exist_ok=True)
            given["tracking_uri"] = f"sqlite:///{folder / 'mlflow.db' if writes else ':memory:'}"


def prepare(loggers: Sequence[Logger], folder: Path, step: int | None = None) -> None:
    """Has each logger begin a run that is named like the folder or, on a resume, go on with the one that it had.

    Args:
        step: optimizer steps of the checkpoint that a resume goes on from; what was logged behind it comes again.
    """
    file = RunPaths(folder).loggers
    known = read_json(file) if step is not None and file.is_file() else {}
    for key, logger in _named(loggers):
        with spared(logger):
            _continue(logger, folder, known.get(key), step)


def remember(loggers: Sequence[Logger], folder: Path) -> None:
    """Notes in the folder which run each logger has begun, for a resume."""
    known = {}
    for key, logger in _named(loggers):
        with spared(logger):
            if lost(logger) is None and (run := _run_of(logger)) is not None:
                known[key] = run
    if known:
        write_json(RunPaths(folder).loggers, known)


def log_configuration(loggers: Sequence[Logger], config: Mapping[str, Any]) -> None:
    """Sends the resolved configuration to all loggers."""
    for logger in loggers:
        with spared(logger):
            _configure(logger, dict(config))


def _named(loggers: Sequence[Logger]) -> Iterator[tuple[str, Logger]]:
    """Each with its class and its place among those of the same class."""
    seen: Counter[str] = Counter()
    for logger in loggers:
        name = type(logger).__name__
        yield f"{name} {seen[name]}", logger
        seen[name] += 1


@singledispatch
def _continue(logger: Logger, folder: Path, run: Any, step: int | None) -> None:
    """Other loggers begin anew, or go on by themselves."""


@singledispatch
def _run_of(logger: Logger) -> Any:
    """What `_continue` has to know later; null: nothing."""
    return None


@singledispatch
def _configure(logger: Logger, config: dict[str, Any]) -> None:
    logger.log_hyperparams(config)


@_continue.register
def _(logger: TensorBoardLogger, folder: Path, run: Any, step: int | None) -> None:
    if run is not None and logger._version in (None, run):
        logger._version = run
        if logger._kwargs.get("purge_step") is None:
            logger._kwargs["purge_step"] = step  # TensorBoard hides what a killed run has logged behind it


@_run_of.register
def _(logger: TensorBoardLogger) -> Any:
    return logger.version


@_continue.register
def _(logger: MLFlowLogger, folder: Path, run: Any, step: int | None) -> None:
    logger._run_name = logger._run_name or folder.resolve().name  # or MLflow draws one, the same by the same seed
    if run is None or logger._run_id not in (None, run) or rank_zero_only.rank != 0:
        return
    from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

    try:
        logger._mlflow_client.update_run(run, status="RUNNING")
        logger._run_id = run
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        print(f"MLflow has no run {run} any more, which {folder} began; a new one begins")


@_run_of.register
def _(logger: MLFlowLogger) -> Any:
    return logger.run_id


@_configure.register
def _(logger: MLFlowLogger, config: dict[str, Any]) -> None:
    """A run's parameters stay what they are; what a resume has changed becomes a tag of the same name."""
    begun = logger.experiment.get_run(logger.run_id).data.params
    if not begun:
        logger.log_hyperparams(config)
        return
    for name, value in _flatten_dict(_convert_params(config)).items():
        if (now := str(value)[:LONGEST_PARAMETER]) != begun.get(name):
            logger.experiment.set_tag(logger.run_id, name, now)


@_continue.register
def _(logger: WandbLogger, folder: Path, run: Any, step: int | None) -> None:
    """Its id has a file of its own. Without key or network it is offline."""
    if (reason := _why_offline(logger)) is not None:  # also with `log_model`: files wait until they are synchronised
        logger._offline = True
        logger._wandb_init["mode"] = "offline"
        rank_zero_only(print)(
            f"W&B: {reason}, so the run is offline; `wandb sync wandb/offline-run-*` uploads it later"
        )
    elif not logger._offline:
        logger._wandb_init["resume"] = logger._wandb_init.get("resume") or "allow"
    file = RunPaths(folder).wandb_id
    if rank_zero_only.rank == 0 and not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(logger._id or uuid.uuid4().hex[:8])
    if file.exists():
        logger._id = logger._wandb_init["id"] = file.read_text()
    logger._wandb_init["name"] = logger._wandb_init.get("name") or folder.resolve().name


def _why_offline(logger: WandbLogger) -> str | None:
    """What is missing for an online run that nobody has ruled out."""
    if logger._offline or os.environ.get("WANDB_MODE"):
        return None
    server = os.environ.get("WANDB_BASE_URL") or WANDB
    if not (os.environ.get("WANDB_API_KEY") or _logged_in(server)):
        return "no key is there (`wandb login` leaves one)"
    return None if rank_zero_only.rank != 0 or reachable(server) else f"{server} cannot be reached"


def _logged_in(server: str) -> bool:
    """Whether `wandb login` has left a key, for the public server or one's own."""
    try:
        return netrc.netrc().authenticators(urlsplit(server).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def reachable(server: str) -> bool:
    """Whether anything answers there."""
    try:
        urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=LONGEST_WAIT).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
