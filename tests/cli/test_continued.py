"""A run that goes on is the run that was never interrupted: step for step, cell for cell, bit for bit."""

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import mistakes
import pytest
import torch
from test_two_commands import CONFIG, here  # noqa: F401

from upo.callbacks.metrics_csv import read_metrics
from upo.cli.main import main
from upo.data.example import Example, Response
from upo.evaluation.measure import distinct_prompts
from upo.runtime.run_folder import RunPaths

pytestmark = pytest.mark.turns(3)

refused = partial(mistakes.refused, main)

LORA = [
    "--model.policy.adapter",
    '{"class_path": "LoRA", "init_args": {"r": 2}}',
    "--model.reference",
    "AdapterReference",
]
FAST = ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "0.01", "--model.scheduler.total_iters", "3"]


def table(folder: str) -> list[dict[str, float]]:
    """metrics.csv without what depends on the clock."""
    rows = read_metrics(Path(folder, "metrics.csv"))
    return [{name: x for name, x in row.items() if not name.startswith("speed/")} for row in rows]


def train_cells(folder: str) -> list[dict[str, float]]:
    """A run validates at its end, which a longer one does elsewhere."""
    return [{name: x for name, x in row.items() if not name.startswith("val/")} for row in table(folder)]


def weights(folder: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(folder, "checkpoints", "last.ckpt"), weights_only=True)["state_dict"]


def fit(folder: str, *more: str) -> None:
    main(["--config", "run.yaml", *FAST, "--trainer.default_root_dir", folder, *more])


STEPS = ("--trainer.max_epochs", "-1", "--trainer.max_steps")
EPOCHS = ("--trainer.max_steps", "-1", "--trainer.max_epochs")


@pytest.mark.parametrize(
    ("first", "then", "number", "more"),
    [
        ((*STEPS, "3"), (*STEPS, "8"), 8, ()),  # an epoch has three steps: an end at an epoch's end
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ((*STEPS, "4"), (*STEPS, "8"), 8, ()),  # and within one
                ((*EPOCHS, "1"), (*EPOCHS, "3"), 9, ()),
                ((*EPOCHS, "2"), (*STEPS, "8"), 8, ()),
                ((*STEPS, "2"), (*EPOCHS, "2"), 6, ()),
                ((*STEPS, "3"), (*STEPS, "7"), 7, LORA),
                ((*STEPS, "4"), (*STEPS, "7"), 7, LORA),
                ((*STEPS, "3"), (*EPOCHS, "2"), 6, ("--data.workers", "2")),
                ((*STEPS, "4"), (*STEPS, "7"), 7, ("--data.workers", "2")),
                ((*STEPS, "4"), (*STEPS, "7"), 7, ("--trainer.limit_train_batches", "2")),
            )
        ),
    ],
)
def test_a_finished_run_is_trained_further(first, then, number, more, here: Path) -> None:  # noqa: F811
    fit("whole", *then, *more)
    fit("parts", *first, *more)
    (here / "parts/export").mkdir()
    fit("parts", *then, *more, "--ckpt_path", "last")
    assert [int(row["step"]) for row in table("parts")] == list(range(number))
    assert train_cells("parts") == train_cells("whole")
    whole = weights("whole")
    assert all(torch.equal(x, whole[name]) for name, x in weights("parts").items())
    assert not (here / "parts/export").exists() and list((here / "parts").glob("export-*")), "it was the shorter run's"
    assert RunPaths("parts").finished


@pytest.mark.turns(3)
@pytest.mark.parametrize("length", [(*STEPS, "3"), (*STEPS, "4"), (*EPOCHS, "2")])
def test_where_nothing_is_left_it_is_said(length, here: Path, capsys) -> None:  # noqa: F811
    fit("run", *length)
    before = (here / "run/summary.json").stat().st_mtime_ns, (here / "run/metrics.csv").read_text()
    args = ("--config", "run.yaml", *FAST, "--trainer.default_root_dir", "run", *length)
    text = refused(capsys, *args, "--ckpt_path", "last")
    assert "nothing is left to do; to train on, raise --trainer.max_steps" in text
    assert before == ((here / "run/summary.json").stat().st_mtime_ns, (here / "run/metrics.csv").read_text())
    assert "train it further with --ckpt_path last" in refused(capsys, *args)


class Killed(BaseException):
    pass


class Kill(pl.Callback):
    """Ends a process in a hook, after so many steps."""

    def __init__(self, hook: str = "", step: int = 0):
        if hook:
            setattr(self, hook, lambda trainer, *_: self._end(trainer, step))

    def _end(self, trainer: pl.Trainer, step: int) -> None:
        if trainer.global_step == step and trainer.ckpt_path is None:
            raise Killed


EVERY = {
    "within epochs": ("--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null"),
    "each epoch": (),
}
KILLS = [
    *(("within epochs", hook, 4) for hook in ("on_validation_start", "on_validation_end", "on_train_batch_start")),
    *(("each epoch", hook, 3) for hook in ("on_validation_start", "on_validation_end", "on_train_epoch_end")),
]
MORE = [
    *(("within epochs", "on_validation_end", step) for step in (2, 6)),
    *(("within epochs", "on_train_batch_end", step) for step in (2, 3, 6)),
    *(("each epoch", hook, step) for step in (2, 4, 6) for hook in ("on_train_batch_start", "on_train_batch_end")),
]


NIGHTLY = [pytest.param(*case, marks=pytest.mark.nightly) for case in MORE]


@pytest.mark.turns(6)
@pytest.mark.parametrize(("every", "hook", "step"), [*KILLS, *NIGHTLY])
def test_each_step_and_each_cell_once_after_a_kill(every: str, hook: str, step: int, here: Path) -> None:  # noqa: F811
    """Killed at places where the row of a step was known in part: before and after it was validated, or saved."""
    length = (*STEPS, "7", *EVERY[every], "--checkpoint.every_n_train_steps", "1")
    kill = json.dumps([{"class_path": "test_continued.Kill", "init_args": {"hook": hook, "step": step}}])
    with pytest.raises(Killed):
        fit("killed", *length, "--trainer.callbacks", kill)
    fit("killed", *length, "--trainer.callbacks", kill, "--ckpt_path", "last")
    fit("whole", *length)
    expected = table("whole")
    assert sum("val/loss" in row for row in expected) >= 2 and len(expected) == 7
    assert table("killed") == expected


class Send(Kill):
    """Sends a signal to its own process in a hook, after so many steps."""

    def _end(self, trainer: pl.Trainer, step: int) -> None:
        if trainer.global_step == step and trainer.ckpt_path is None:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("hook", "step"),
    [("on_train_batch_start", 1), ("on_train_batch_end", 3), ("on_validation_start", 3), ("on_train_epoch_end", 3)],
)
def test_a_signal_is_obeyed_wherever_it_comes(hook: str, step: int, here: Path, capfd) -> None:  # noqa: F811
    """An epoch has three steps: also where Lightning, which would end a run with 0 and save nothing, looks for it."""
    send = json.dumps([{"class_path": "test_continued.Send", "init_args": {"hook": hook, "step": step}}])
    with pytest.raises(SystemExit) as end:
        fit("run", *STEPS, "7", "--trainer.callbacks", send)
    assert end.value.code == 143 and "-stopped.ckpt is saved; continue with" in capfd.readouterr().err
    fit("run", *STEPS, "7", "--trainer.callbacks", send, "--ckpt_path", "last")
    fit("whole", *STEPS, "7")
    assert table("run") == table("whole")


def test_a_signal_loses_no_cell(here: Path, upo_fit: Callable) -> None:  # noqa: F811
    args = ("--config", "run.yaml", *FAST, *STEPS, "100000", "--trainer.default_root_dir", "run")
    running = lambda: Path("run/metrics.csv").exists() and len(table("run")) > 3  # noqa: E731
    assert upo_fit(*args, kill_when=running, signal_=signal.SIGTERM).code == 143
    number = len(table("run"))
    fit("whole", *STEPS, str(number))
    assert train_cells("run") == train_cells("whole")


# ---- ends that surprise --------------------------------------------------------------------------------------------


def warned(recwarn: pytest.WarningsRecorder) -> str:
    return " ".join(str(x.message) for x in recwarn)


def test_a_run_that_ends_before_its_steps_says_so(here: Path, recwarn: pytest.WarningsRecorder) -> None:  # noqa: F811
    fit("run", "--trainer.max_steps", "5", "--trainer.max_epochs", "1")
    assert "max_epochs: 1 ends this run after 3 of the 5 steps" in warned(recwarn)
    recwarn.clear()
    fit("other", "--trainer.max_steps", "3", "--trainer.max_epochs", "1")
    assert "max_epochs" not in warned(recwarn) and "pairs_per_step" not in warned(recwarn)


def test_a_run_that_ends_before_its_warm_up_says_so(here: Path, recwarn: pytest.WarningsRecorder) -> None:  # noqa: F811
    upo = ("--model", "UPO", "--model.reward_weights", '{"words": 0.1}', "--model.value_warmup_steps")
    words = ("--data.rewards", '{"words": {"class_path": "Words"}}', *STEPS, "2")
    fit("run", *upo, "2", *words)
    assert "warm-up ends at step 2, and the run has only 2" in warned(recwarn)
    recwarn.clear()
    fit("other", *upo, "1", *words)
    assert "warm-up" not in warned(recwarn)


def test_steps_that_want_more_pairs_than_there_are(here: Path, recwarn: pytest.WarningsRecorder) -> None:  # noqa: F811
    fit("run", "--trainer.max_steps", "1", "--data.pairs_per_step", "7")
    assert "data.pairs_per_step is 7, but there are only 6 to train on" in warned(recwarn)


def test_an_evaluation_of_more_prompts_than_are_held_out(capsys) -> None:
    examples = [Example(f"prompt {i}", (Response("a"),)) for i in range(3)]
    assert len(distinct_prompts(examples, 5, 0)) == 3
    assert "5 prompts are asked for, and 3 are held out: raise data.validation" in capsys.readouterr().out
    assert len(distinct_prompts(examples, 3, 0)) == 3 and not capsys.readouterr().out
