"""Loggers that fail end themselves and not the run: a server that is gone, a full disk elsewhere, a mistake in one."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from lightning.pytorch.loggers import Logger

CALLS = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")
"""What Lightning has loggers do."""
LOST = "_lost_in_run"


def spare(logger: Logger) -> None:
    """From now on whatever the logger raises while it is called by Lightning ends it instead of the run."""
    for name in CALLS:
        setattr(logger, name, _guarded(logger, getattr(logger, name)))


def lost(logger: Logger) -> str | None:
    """Why a logger gets nothing any more, in a sentence."""
    return getattr(logger, LOST, None)


@contextmanager
def spared(logger: Logger) -> Iterator[None]:
    """Inside, an error means that the logger is lost: it is said once, and the run goes on."""
    try:
        yield
    except Exception as error:
        if lost(logger) is None:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            setattr(
                logger, LOST, f"{type(logger).__name__} failed and gets nothing more; metrics.csv has all ({reason})"
            )
            warnings.warn(lost(logger) or "")


def _guarded(logger: Logger, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def guarded(*args: Any, **options: Any) -> Any:
        if lost(logger) is None:
            with spared(logger):
                return call(*args, **options)
        return None

    return guarded
