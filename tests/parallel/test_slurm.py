"""SIGUSR1 before a time limit: the run saves, asks SLURM to be queued again, and then goes on as the same run."""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from test_sharded import config, sharded
from test_trajectories import losses

from upo.data.example import Prompt
from upo.rewards.length import Words

pytestmark = pytest.mark.turns(2)

STEPS = ("--trainer.max_steps", "60")


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Callable[[int], dict[str, str]]]:
    """`job(ranks, **more)`: the environment that srun gives its tasks; `scontrol` writes down what it is asked for."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "scontrol"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ntest -z "$DENIED" || {{ echo "$DENIED" >&2; exit 1; }}\n'
    )
    fake.chmod(0o755)

    def variables(ranks: int, **more: str) -> Callable[[int], dict[str, str]]:
        both = {"SLURM_NTASKS": str(ranks), "SLURM_NTASKS_PER_NODE": str(ranks), "SLURM_NNODES": "1"}
        both |= {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NODEID": "0", "HOME": str(tmp_path)}
        both |= {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "WANDB_MODE": "offline", "WANDB_SILENT": "true"} | more
        return lambda rank: both | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}

    return variables


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.nightly), pytest.param(2, marks=pytest.mark.slow)])
def test_a_job_is_queued_again_and_goes_on(ranks: int, job, upo_fit, tmp_path: Path) -> None:
    """The same command, though it says --overwrite; the same W&B run."""
    config(file := tmp_path / "DPO.yaml", "DPO", True)
    wandb = {"class_path": "WandbLogger", "init_args": {"project": "test", "save_dir": ".", "offline": True}}
    args = ("--config", file, *STEPS, "--trainer.devices", ranks, *(sharded() if ranks > 1 else ()))
    assert upo_fit(*args, "--trainer.default_root_dir", "whole", ranks=ranks, env=job(ranks)).code == 0
    args = (*args, "--trainer.default_root_dir", "run", "--trainer.logger", json.dumps(wandb), "--overwrite", "true")
    run = tmp_path / "run"
    reached = lambda: (run / "metrics.csv").exists() and len(losses(run)) > 2  # noqa: E731
    stopped = upo_fit(*args, ranks=ranks, env=job(ranks), kill_when=reached, signal_=signal.SIGUSR1)
    assert set(stopped.codes) == {138}, stopped.text
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert not (run / "summary.json").exists() and not list(run.glob("hpc*"))
    done = upo_fit(*args, ranks=ranks, env=job(ranks, SLURM_RESTART_COUNT="1"))
    assert done.code == 0, done.text
    assert losses(run) == losses(tmp_path / "whole")
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{(run / 'wandb_id.txt').read_text()}"))) == 2
    again = upo_fit(*args, env=job(ranks, SLURM_RESTART_COUNT="2"))  # rank 0 decides, the others wait for it
    assert again.code == 2 and "holds a finished run" in again.text, "not even --overwrite deletes it"


class Halting(Words):
    """A judge that has a job's first evaluation wait to be stopped."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        if "SLURM_RESTART_COUNT" not in os.environ:
            Path("evaluating").touch()
            time.sleep(600)
        return super().__call__(prompts, responses)


@pytest.mark.slow
def test_a_job_is_queued_again_while_it_evaluates(job, upo_fit, tmp_path: Path) -> None:
    config(file := tmp_path / "DPO.yaml", "DPO", True)
    args = ("--config", file, "--trainer.devices", "1", "--trainer.default_root_dir", "run", "--data.validation", "3",
            "--evaluation", json.dumps({"prompts": 3, "max_new_tokens": 4, "judge": "test_slurm.Halting"}))  # fmt: skip
    halted = (tmp_path / "evaluating").exists
    assert upo_fit(*args, env=job(1), kill_when=halted, signal_=signal.SIGUSR1).code == 138
    assert (tmp_path / "asked").read_text() == "requeue 77\n" and not (tmp_path / "run" / "summary.json").exists()
    done = upo_fit(*args, env=job(1, SLURM_RESTART_COUNT="1"))
    assert done.code == 0, done.text
    assert "policy/distinct_1" in json.loads((tmp_path / "run" / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "asked", "said"),
    [
        (None, None, ""),
        ({"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 70_3\n", ""),
        ({"DENIED": "Job violates a limit"}, "requeue 77\n", "not queued again (Job violates a limit)"),
    ],
    ids=["no SLURM", "array", "denied"],
)
def test_who_is_asked(environment, asked: str | None, said: str, job, upo_fit, tmp_path: Path) -> None:
    config(file := tmp_path / "DPO.yaml", "DPO", True)
    run = tmp_path / "run"
    reached = lambda: (run / "metrics.csv").exists() and len(losses(run)) > 2  # noqa: E731
    args = ("--config", file, *STEPS, "--trainer.devices", "1", "--trainer.default_root_dir", "run")
    env = None if environment is None else job(1, **environment)
    stopped = upo_fit(*args, env=env, kill_when=reached, signal_=signal.SIGUSR1)
    assert stopped.code == 138 and said in stopped.text, stopped.text
    assert ((tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else None) == asked
    assert list((run / "checkpoints").glob("step=*-stopped.ckpt"))
