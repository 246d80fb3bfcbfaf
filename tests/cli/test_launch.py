"""Launchers: as many processes as the Trainer takes, and none that waits for ever."""

import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from test_two_commands import here  # noqa: F401

from upo.cli.launch import _bounded, check_launch
from upo.errors import RunFailed, UserError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "said"),
    [
        (TORCHRUN, 1, 1, "torchrun runs 4 processes, but the Trainer takes 1 .*devices 2 --trainer.num_nodes 2"),
        (TORCHRUN, 2, 1, "torchrun runs 4 processes, but the Trainer takes 2"),
        (TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, 2, 1, "torchrun runs 1 processes"),
        (SLURM, 1, 1, "SLURM runs 2 processes, but the Trainer takes 1 .*--trainer.devices 2 --trainer.num_nodes 1"),
        (TORCHRUN, 2, 2, None),
        (SLURM, 2, 1, None),
        ({}, 2, 1, None),
        (SLURM | {"SLURM_JOB_NAME": "bash"}, 1, 1, None),
    ],
)
def test_processes_and_devices_are_compared(
    environment: dict[str, str], devices: int, nodes: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if said is None:
        check_launch(devices, nodes)
    else:
        with pytest.raises(UserError, match=said):
            check_launch(devices, nodes)


def test_two_processes_for_one_device_are_refused(here: Path, upo_fit: Callable) -> None:  # noqa: F811
    """Each would train the whole run."""
    done = upo_fit("--config", "run.yaml", "--trainer.devices", "1", ranks=2)
    assert done.codes == [2, 2] and "torchrun runs 2 processes, but the Trainer takes 1" in done.text, done.text
    assert not Path("run/metrics.csv").exists()


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its limit, by an error of what waits, or because all are there; signals end it meanwhile."""
    gave_up, before = threading.Event(), signal.getsignal(signal.SIGINT)
    seen = []

    def wait() -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        assert gave_up.wait(10)

    _bounded(wait, timedelta(seconds=-0.9), "text", gave_up.set)()
    assert seen == [signal.SIG_DFL] and signal.getsignal(signal.SIGINT) is before

    def fail() -> None:
        raise dist.DistStoreError("1/2 clients joined")

    gave_up.clear()
    with pytest.raises(RunFailed, match="some are missing"):
        _bounded(fail, timedelta(seconds=-0.8), "some are missing", gave_up.set)()
    _bounded(lambda: None, timedelta(seconds=-0.8), "", gave_up.set)()
    time.sleep(0.4)
    assert not gave_up.is_set(), "nobody is missed who has come"


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [None, signal.SIGTERM])
def test_a_rank_waits_for_a_missing_one(signal_: int | None, here: Path, upo_fit: Callable) -> None:  # noqa: F811
    env = TORCHRUN | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    ddp = '{"class_path": "DDPStrategy", "init_args": {"timeout": "0:00:%s"}}'
    args = ["--config", "run.yaml", "--trainer.devices", "2", "--trainer.strategy"]
    start = time.monotonic()
    if signal_ is None:
        done = upo_fit(*args, ddp % "05", env=lambda rank: env)
        assert done.code == 1 and "after 0:00:05 not all 2 processes of this run had started" in done.text, done.text
        return
    waited = lambda: Path("run/.lock").exists() and time.monotonic() > start + 20  # noqa: E731
    done = upo_fit(*args, ddp % "59", env=lambda rank: env, kill_when=waited, signal_=signal_)
    assert done.code in (-signal_, 128 + signal_), done.text
