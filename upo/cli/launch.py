"""Several processes of one run: as many as the Trainer takes, and a limit to how long they wait for one another."""

import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from upo.errors import RunFailed, UserError

PATIENCE = timedelta(minutes=30)
"""How long processes wait for missing ones where the strategy has no `timeout`."""


def check_launch(devices: int, nodes: int) -> None:
    """Refuses a launcher that has started another number of processes than the Trainer takes.

    Each would be a run of its own, in the same folder.

    Raises:
        UserError: names both numbers, and what to set.
    """
    if TorchElasticEnvironment.detect():
        name, started = "torchrun", int(os.environ["WORLD_SIZE"])
        each = int(os.environ.get("LOCAL_WORLD_SIZE") or started)
    elif SLURMEnvironment.detect():
        name, started = "SLURM", int(os.environ["SLURM_NTASKS"])
        each = started // int(os.environ.get("SLURM_NNODES") or 1)
    else:
        return
    if started != devices * nodes:
        raise UserError(
            f"{name} runs {started} processes, but the Trainer takes {devices * nodes} (devices {devices}, num_nodes "
            f"{nodes}): set --trainer.devices {each} --trainer.num_nodes {max(1, started // max(1, each))}, or launch "
            f"{devices * nodes}"
        )


def bound_waiting(trainer: pl.Trainer) -> None:
    """From now on a process that waits for the others to start obeys SIGTERM and Ctrl-C, and gives up in the end.

    They wait in C++, where Python's own handlers of signals are not called.
    """
    strategy: Any = trainer.strategy
    number = trainer.num_nodes * trainer.num_devices
    if number == 1:
        return
    limit = getattr(strategy, "_timeout", None) or PATIENCE
    text = (
        f"after {limit} not all {number} processes of this run had started: look at what the missing ones say, and at "
        "the number that is launched; the strategy's `timeout` is how long they wait"
    )

    def give_up() -> None:
        os.write(2, f"error: {text}\n".encode())
        os._exit(RunFailed.code)

    strategy.setup_environment = _bounded(strategy.setup_environment, limit, text, give_up)


def _bounded(meet: Callable[[], None], limit: timedelta, text: str, give_up: Callable[[], None]) -> Callable[[], None]:
    @wraps(meet)
    def met() -> None:
        before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
        timer = threading.Timer(limit.total_seconds() + 1, give_up)  # what waits with the same limit may end first
        timer.daemon = True
        timer.start()
        try:
            meet()
        except dist.DistError as error:
            raise RunFailed(text) from error
        finally:
            timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    return met
