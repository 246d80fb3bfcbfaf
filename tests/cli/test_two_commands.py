"""Two commands in one run folder, and signals: nothing is mixed, nothing is lost, and what to do next is said."""

import os
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import mistakes
import pytest
from training import pairs_file

from upo.callbacks.graceful_stop import Signals
from upo.callbacks.metrics_csv import read_metrics
from upo.cli.main import main
from upo.cli.stages import _finished
from upo.data.example import Prompt
from upo.errors import UserError, short_errors
from upo.evaluate import main as evaluate
from upo.rewards.length import Words
from upo.runtime.lock import Lock, alone

pytestmark = pytest.mark.turns(3)

CONFIG = """
model:
  class_path: DPO
  init_args:
    policy:
      config: {model_type: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 24,
        max_position_embeddings: 256}
      tokenizer: tiny.tokenizer
    reference: FrozenReference
data: {sources: [{name: hh, path: pairs.jsonl}], validation: 2, pairs_per_step: 2, max_length: 128, workers: 0}
trainer: {max_steps: 4, max_epochs: -1, accelerator: cpu, enable_progress_bar: false, default_root_dir: run}
"""
RUN = Path("run")

refused = partial(mistakes.refused, main)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pairs_file(tmp_path)
    Path("run.yaml").write_text(CONFIG)
    return tmp_path


def steps() -> list[int]:
    return [int(row["step"]) for row in read_metrics(RUN / "metrics.csv")] if (RUN / "metrics.csv").exists() else []


LONG = ("--config", "run.yaml", "--trainer.max_steps", "100000")


# ---- two commands in one folder ------------------------------------------------------------------------------------


def test_a_second_command_in_a_folder_is_refused(here: Path, upo_fit: Callable, capsys) -> None:
    """Whatever it asks for; the run that is there goes on, and stopped it leaves no lock."""
    said = []

    def try_all() -> bool:
        if len(steps()) < 3:
            return False
        for more in ([], ["--overwrite"], ["--ckpt_path", "last"]):
            said.append(refused(capsys, "--config", "run.yaml", *more))
        said.append(mistakes.refused(evaluate, capsys, "run", "--prompts", "2"))
        return True

    done = upo_fit(*LONG, kill_when=try_all)
    assert done.code == -signal.SIGKILL
    assert len(said) == 4 and all("another command works in run (process " in text for text in said), said
    assert steps()[:3] == [0, 1, 2], "and nothing of it is deleted"
    main(["--config", "run.yaml", "--overwrite"])  # no lock is left by the one that was killed
    assert steps() == [0, 1, 2, 3]


@pytest.mark.slow
def test_workers_of_a_killed_run_hold_no_lock(here: Path, upo_fit: Callable) -> None:
    """They notice only after seconds that they are alone."""
    running = lambda: len(steps()) > 2  # noqa: E731
    assert upo_fit(*LONG, "--data.workers", "1", kill_when=running).code == -signal.SIGKILL
    with alone(RUN / ".lock", "somebody"):
        pass


def test_overwriting_keeps_the_lock(here: Path) -> None:
    """A new file of the same name would let a third command in."""
    main(["--config", "run.yaml", "--trainer.max_steps", "1"])
    before = (RUN / ".lock").stat().st_ino
    (RUN / "more").mkdir()
    (RUN / "link").symlink_to("pairs.jsonl")
    main(["--config", "run.yaml", "--trainer.max_steps", "1", "--overwrite"])
    assert (RUN / ".lock").stat().st_ino == before
    assert not (RUN / "more").exists() and not (RUN / "link").exists() and Path("pairs.jsonl").exists()


def test_a_mistake_leaves_no_folder_and_no_lock(here: Path, capsys) -> None:
    refused(capsys, "--config", "run.yaml", "--ckpt_path", "last")
    assert not RUN.exists()
    refused(capsys, "--config", "run.yaml", "--model.policy.tokenizer", "no/such/folder")
    main(["--config", "run.yaml"])
    assert steps() == [0, 1, 2, 3]


def test_other_ranks_take_no_lock(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from upo.cli import resume

    with resume.run_alone(RUN):
        monkeypatch.setattr(resume.rank_zero_only, "rank", 1)
        with resume.run_alone(RUN):
            pass


def test_a_lock_names_who_has_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "lock"
    with Lock(file) as first, Lock(file) as second:
        assert first.take() and not second.take()
        assert second.holder.startswith(f"process {os.getpid()} on ")
        with (
            pytest.raises(UserError, match=rf"somebody \(process {os.getpid()} on .*\); wait until it ends"),
            alone(file, "somebody"),
        ):
            pytest.fail("it is held")
    with Lock(file) as third:
        assert third.take(), "given back"


def test_a_folder_that_cannot_be_made(here: Path, capsys) -> None:
    Path("file").write_text("x")
    text = refused(capsys, "--config", "run.yaml", "--trainer.default_root_dir", "file/run")
    assert "file/run cannot be written" in text


# ---- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal_", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_stopped_run_is_saved_and_says_how_to_go_on(
    signal_: int, code: int, name: str, here: Path, upo_fit: Callable
) -> None:
    running = lambda: len(steps()) > 2  # noqa: E731
    done = upo_fit(*LONG, "--overwrite", kill_when=running, signal_=signal_)
    assert done.code == code, done.text
    (saved,) = (RUN / "checkpoints").glob("step=*-stopped.ckpt")
    taken = int(saved.name.removeprefix("step=").removesuffix("-stopped.ckpt"))
    assert steps() == list(range(taken)) and "Traceback" not in done.text
    said = done.text.strip().splitlines()[-1]
    words = f"stopped by {name}: {saved} is saved; continue with: python -m upo.fit "
    assert said.startswith(words), done.text
    assert ("once more leaves at once" in done.text) == (signal_ == signal.SIGINT)
    args = shlex.split(said.removeprefix(words))
    assert args == [*LONG, "--ckpt_path", "last"]
    args[3] = str(taken + 2)
    again = upo_fit(*args)
    assert again.code == 0 and steps() == list(range(taken + 2)), again.text


class Slow(Words):
    """A reward that does not come to an end."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        Path("measuring").touch()
        time.sleep(100)
        return super().__call__(prompts, responses)


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_while_its_data_are_prepared(signal_: int, here: Path, upo_fit: Callable) -> None:
    rewards = '{"x": {"class_path": "test_two_commands.Slow"}}'
    args = ["--config", "run.yaml", "--data.rewards", rewards, "--data.relabel", "{x: 1}"]
    done = upo_fit(*args, kill_when=Path("measuring").exists, signal_=signal_)
    assert done.code == 128 + signal_, done.text
    assert "no step is saved; begin again with: python -m upo.fit --config run.yaml" in done.text
    assert "Traceback" not in done.text and "--ckpt_path" not in done.text


class Stage:
    """A process that is waited for; signals come while it runs and while it saves."""

    def __init__(self, *waits: int | BaseException):
        self.waits, self.told = list(waits), []

    def wait(self) -> int:
        found = self.waits.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    def terminate(self) -> None:
        self.told.append("terminate")

    def kill(self) -> None:
        self.told.append("kill")


@pytest.mark.parametrize(
    ("waits", "told"),
    [((SystemExit(130), 143), ["terminate"]), ((SystemExit(130), SystemExit(130)), ["terminate", "kill"])],
    ids=["once", "twice"],
)
def test_an_earlier_stage_is_saved_before_its_command_ends(waits, told, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(*waits)
    monkeypatch.setattr("upo.cli.stages.subprocess.Popen", lambda command, env: stage)
    with pytest.raises(SystemExit) as end:
        _finished(["upo.fit"], {})
    assert end.value.code == 130 and stage.told == told and not stage.waits


def test_a_second_ctrl_c_leaves_at_once(capfd) -> None:
    """The first waits for the end of the step."""
    signals, before = Signals(["--config", "x.yaml"]), signal.getsignal(signal.SIGINT)
    with signals.handled():
        signals.noted_only = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert signals.asked == signal.SIGINT
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(signal.SIGINT)
    assert end.value.code == 130
    first, second = capfd.readouterr().err.strip().splitlines()
    assert "once more leaves at once" in first and "stopped by Ctrl-C: no step is saved" in second
    assert signal.getsignal(signal.SIGINT) is before


def test_the_command_that_goes_on(tmp_path: Path, capfd) -> None:
    """Without what would begin anew."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step=3.ckpt").touch()
    given = ["--config", "a b.yaml", "--overwrite", "true", "--ckpt_path=old.ckpt", "--model.beta=1", "--overwrite"]
    signals = Signals([*given, "--ckpt_path", "x", "--data.seed", "3"])
    signals.folder = tmp_path
    with pytest.raises(SystemExit):
        signals.leave(signal.SIGTERM)
    said = capfd.readouterr().err.strip().partition("continue with: ")[2]
    assert said == "python -m upo.fit --config 'a b.yaml' --model.beta=1 --data.seed 3 --ckpt_path last"


def test_ctrl_c_ends_other_commands_with_a_sentence(capsys) -> None:
    with pytest.raises(SystemExit) as end, short_errors("what is there is kept"):
        raise KeyboardInterrupt
    assert end.value.code == 130 and capsys.readouterr().err == "stopped by Ctrl-C; what is there is kept\n"
