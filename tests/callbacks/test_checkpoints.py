"""Checkpoints on disk: known to be whole, the newest and the best of them kept, and nothing else."""

import errno
import json
import os
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import mistakes
import pytest
import torch
from training import make, pairs_file

from upo.callbacks import checkpoint_io
from upo.callbacks.checkpoint_io import AtomicCheckpointIO, bytes_of
from upo.callbacks.checkpoints import Checkpoints
from upo.cli.main import main
from upo.cli.resume import prepare_folder
from upo.data.module import PreferenceData
from upo.data.source import Source
from upo.errors import UserError
from upo.export import main as export_main
from upo.methods import DPO
from upo.models.checkpoint_files import check_resumable, find_checkpoint, latest, read_checkpoint, step_of
from upo.models.export import export
from upo.runtime import disk
from upo.runtime.checksums import check_sums, sha256_of, sums_file

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
data: {sources: [{name: hh, path: pairs.jsonl}], validation: 0, pairs_per_step: 2, max_length: 128}
trainer: {max_steps: 4, max_epochs: -1, accelerator: cpu, enable_progress_bar: false, default_root_dir: run}
checkpoint: {every_n_train_steps: 2}
"""
FOLDER = Path("run/checkpoints")

refused = partial(mistakes.refused, main)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pairs_file(tmp_path)
    Path("run.yaml").write_text(CONFIG)
    return tmp_path


class Killed(BaseException):
    pass


class Watch(pl.Callback):
    """Losses by step; ends the process at the beginning of a step, as a kill would."""

    def __init__(self, kill: int | None):
        self.kill, self.losses = kill, {}

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.kill:
            raise Killed

    def on_train_batch_end(self, trainer, *_):
        self.losses[trainer.global_step] = trainer.callback_metrics["train/loss"].item()


@pytest.fixture
def fit(here: Path) -> Callable[..., dict[int, float]]:
    """`fit(*callbacks, ckpt=None, kill=None, steps=6, validate=None, **checkpoint)`: the losses of a run's steps.

    Saved is every second step; `kill` ends it before that step's update, `validate` says after how many steps it is
    validated; `ckpt=True` goes on from the newest.
    """

    def run(*callbacks, ckpt=None, kill=None, steps=6, validate=None, folder=FOLDER, **options):
        source = Source("hh", path="pairs.jsonl")
        data = PreferenceData((source,), validation=2 if validate else 0, max_length=256, pairs_per_step=2)
        save = Checkpoints(str(folder.absolute()), "{step}", save_last="link", every_n_train_steps=2, **options)
        watch, ckpt = Watch(kill), str(latest(Path("run"))) if ckpt else None
        trainer = pl.Trainer(
            max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, callbacks=[*callbacks, watch, save],
            plugins=[AtomicCheckpointIO()], enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, use_distributed_sampler=False, val_check_interval=validate,
            check_val_every_n_epoch=None if validate else 1,
        )  # fmt: skip
        with nullcontext() if kill is None else pytest.raises(Killed):
            trainer.fit(make(DPO), datamodule=data, ckpt_path=ckpt)
        return watch.losses

    return run


def files() -> set[str]:
    return {path.name for path in FOLDER.iterdir() if path.suffix == ".ckpt" and not path.is_symlink()}


def scores() -> dict[str, float | None]:
    return json.loads((FOLDER / "scores.json").read_text())["checkpoints"]


def linked(name: str) -> str:
    return (FOLDER / name).resolve().name


# ---- sums ----------------------------------------------------------------------------------------------------------


def test_each_has_its_sum_beside_it(fit) -> None:
    fit(steps=2)
    file = FOLDER / "step=2.ckpt"
    assert sums_file(file).read_text() == f"{sha256_of(file)}  step=2.ckpt\n"
    assert subprocess.run(["sha256sum", "-c", "step=2.ckpt.sha256"], cwd=FOLDER, capture_output=True).returncode == 0
    assert {path.name for path in FOLDER.iterdir()} == {"step=2.ckpt", "step=2.ckpt.sha256", "last.ckpt", "scores.json"}


def test_one_flipped_bit_is_refused_on_resume_and_on_export(fit, capsys) -> None:
    """In the middle of a tensor, which PyTorch reads without a word."""
    fit(kill=3)
    file = FOLDER / "step=2.ckpt"
    content, name = bytearray(file.read_bytes()), "policy.model.model.norm.weight"
    weight = torch.load(file, weights_only=True)["state_dict"][name]
    place = content.find(weight.numpy().tobytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert not torch.equal(torch.load(file, weights_only=True)["state_dict"][name], weight)
    text = refused(capsys, "--config", "run.yaml", "--ckpt_path", "last")
    assert "step=2.ckpt was changed after it was written" in text
    assert "was changed after it was written" in mistakes.refused(export_main, capsys, "run", "out")
    for read in (AtomicCheckpointIO().load_checkpoint, check_resumable, read_checkpoint):
        with pytest.raises(UserError, match="was changed after it was written"):
            read(file)
    with pytest.raises(UserError, match="was changed after it was written"):
        export(FOLDER / "last.ckpt", Path("out"))  # a link is no way around
    content[place] ^= 1
    file.write_bytes(content)
    export(Path("run"), Path("out"))


def test_checkpoints_of_earlier_versions_have_no_sum_and_load(fit) -> None:
    whole = fit(folder=Path("whole"))
    fit(kill=3)
    sums_file(FOLDER / "step=2.ckpt").unlink()
    (FOLDER / "scores.json").unlink()
    assert fit(ckpt=True) == {step: whole[step] for step in (3, 4, 5, 6)}
    assert files() == {"step=6.ckpt"}


def test_a_folder_is_compared_file_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "step=1.ckpt"
    folder.mkdir()
    for name, rank in (("__0_0.distcp", 0), ("__1_0.distcp", 1), ("meta.pt", 0)):
        (folder / name).write_text(name)
        with (folder / f"{rank}.sha256").open("a") as sums:
            sums.write(f"{sha256_of(folder / name)}  {name}\n")
    check_sums(folder)
    (folder / "__1_0.distcp").write_text("__1_0.distcq")
    with pytest.raises(UserError, match=r"another sha256 of __1_0\.distcp"):
        check_sums(folder)
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(UserError, match=r"incomplete \(__1_0\.distcp is missing\)"):
        check_sums(folder)
    (folder / "0.sha256").write_text("nonsense\n")
    with pytest.raises(UserError, match="no list of sha256 sums"):
        check_sums(folder)


def test_a_new_file_never_stands_beside_an_old_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a save is cut off: the file is the old one or the new one, and can be read."""
    io, file = AtomicCheckpointIO(), tmp_path / "step=1.ckpt"
    io.save_checkpoint({"x": torch.ones(3)}, file)
    replace, seen = os.replace, []
    for cut in range(2):
        calls = []

        def dying(source, target, cut=cut, calls=calls):
            calls.append(target)
            if len(calls) > cut:
                raise Killed
            replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        with pytest.raises(Killed):
            io.save_checkpoint({"x": torch.full((3,), cut + 2.0)}, file)
        monkeypatch.setattr(os, "replace", replace)
        seen.append(io.load_checkpoint(file)["x"][0].item())
    assert seen == [1.0, 3.0]


def test_a_sum_is_removed_with_its_file(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"x": 1}, tmp_path / "a.ckpt")
    AtomicCheckpointIO().remove_checkpoint(tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_one_process_of_each_machine_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(checkpoint_io, "check_sums", lambda path: seen.append(os.environ.get("LOCAL_RANK")))
    AtomicCheckpointIO().save_checkpoint({"x": 1}, tmp_path / "a.ckpt")
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert seen == ["0"]


# ---- the newest ----------------------------------------------------------------------------------------------------


def test_the_newest_has_taken_the_most_steps(tmp_path: Path) -> None:
    """Whatever was copied or touched last; where the name does not tell, the content does."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for i, (name, step) in enumerate(
        (("step=9.ckpt", 9), ("step=10.ckpt", 10), ("mine.ckpt", 11), ("epoch=3.ckpt", 8))
    ):
        torch.save({"global_step": step}, folder / name)
        os.utime(folder / name, (1000 - i, 1000 - i))
    (folder / "broken.ckpt").write_text("x")
    assert latest(tmp_path) == folder / "mine.ckpt" and step_of(folder / "broken.ckpt") == -1
    (folder / "mine.ckpt").unlink()
    assert latest(tmp_path) == folder / "step=10.ckpt"
    torch.save({}, folder / "step=10-stopped.ckpt")
    assert latest(tmp_path) == folder / "step=10-stopped.ckpt", "of the same step the one written last"


def test_a_run_goes_on_from_its_newest_alone(fit, capsys) -> None:
    """Else `last` would mean the steps that were given up."""
    fit(kill=5, save_top_k=-1)
    assert files() == {"step=2.ckpt", "step=4.ckpt"}
    text = refused(capsys, "--config", "run.yaml", "--ckpt_path", str(FOLDER / "step=2.ckpt"))
    assert "the run has gone on to step=4.ckpt" in text
    given = prepare_folder(Path("branch"), str(FOLDER / "step=2.ckpt"), False)
    assert given == str((FOLDER / "step=2.ckpt").absolute())
    for ckpt in ("last", str(FOLDER / "step=4.ckpt"), str(FOLDER / "last.ckpt")):
        given = prepare_folder(Path("run"), ckpt, False)
        assert given is not None and Path(given).resolve() == (FOLDER / "step=4.ckpt").absolute()


# ---- what is kept --------------------------------------------------------------------------------------------------


def test_preemptions_leave_one(fit) -> None:
    """Killed after each save, the last time by a signal, which saves too: what a run began with goes in its turn."""
    whole, parts = fit(steps=12, folder=Path("whole")), {}
    for kill in (3, 5, 7, 9):
        parts |= fit(ckpt=kill > 3, kill=kill, steps=12)
        assert files() == {f"step={kill - 1}.ckpt"}
    (FOLDER / "step=8.ckpt").rename(FOLDER / "step=8-stopped.ckpt")
    sums_file(FOLDER / "step=8.ckpt").unlink()
    parts |= fit(ckpt=True, steps=12)
    assert files() == {"step=12.ckpt"} and parts == whole


def test_what_a_kill_between_saving_and_removing_left_is_removed(fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self, path):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(AtomicCheckpointIO, "remove_checkpoint", die)
        fit()
    (FOLDER / "mine").write_text("my own")
    (FOLDER / ".step=5-stopped.ckpt.partial").write_text("half a save")
    assert files() == {"step=2.ckpt", "step=4.ckpt"}
    fit(ckpt=True)
    assert files() == {"step=6.ckpt"} and (FOLDER / "mine").exists() and not list(FOLDER.glob(".*"))


def test_all_are_kept_where_that_is_asked(fit) -> None:
    fit(kill=5, save_top_k=-1)
    fit(ckpt=True, save_top_k=-1)
    assert files() == {"step=2.ckpt", "step=4.ckpt", "step=6.ckpt"}


def test_resuming_at_the_end_saves_nothing_anew(fit) -> None:
    """As after a kill while the run was evaluated."""
    fit()
    before = (FOLDER / "step=6.ckpt").stat().st_mtime_ns
    fit(ckpt=True)
    assert files() == {"step=6.ckpt"} and (FOLDER / "step=6.ckpt").stat().st_mtime_ns == before


def test_a_list_that_leads_elsewhere_removes_nothing(fit, here: Path) -> None:
    fit(kill=3)
    (here / "precious.ckpt").write_text("x")
    said = json.loads((FOLDER / "scores.json").read_text())
    said["checkpoints"] = {"../../precious.ckpt": None, str(here / "precious.ckpt"): None} | said["checkpoints"]
    (FOLDER / "scores.json").write_text(json.dumps(said))
    fit(ckpt=True)
    assert (here / "precious.ckpt").exists() and files() == {"step=6.ckpt"}


# ---- the best ------------------------------------------------------------------------------------------------------


class Scores(pl.Callback):
    """A metric as the test wants it, at each validation."""

    values = {1: 0.3, 2: 0.5, 3: 0.9, 4: 0.7, 5: float("nan"), 6: 0.1}

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/mine", Scores.values[trainer.global_step])


MONITORED = {"monitor": "val/mine", "mode": "max", "validate": 1}


def test_the_best_stays_beside_the_newest(fit) -> None:
    """Saved at its own validation, whatever is due; the newest is there too, for a resume."""
    fit(Scores(), **MONITORED)
    assert files() == {"step=3.ckpt", "step=6.ckpt"}
    assert linked("best.ckpt") == "step=3.ckpt" and linked("last.ckpt") == "step=6.ckpt"
    best = find_checkpoint(Path("run"), "best")
    assert best is not None and best.name == "step=3.ckpt" and read_checkpoint(best)["global_step"] == 3
    newest = find_checkpoint(Path("run"))
    assert newest is not None and newest.name == "step=6.ckpt"
    assert scores() == {"step=3.ckpt": pytest.approx(0.9), "step=6.ckpt": pytest.approx(0.1)}


@pytest.mark.parametrize(("mode", "number", "best"), [("min", 1, {6}), ("min", 2, {6, 1}), ("max", 3, {3, 4, 2, 6})])
def test_so_many_of_the_best_as_are_asked_for(fit, mode: str, number: int, best: set[int]) -> None:
    fit(Scores(), **MONITORED | {"mode": mode}, save_top_k=number)
    assert files() == {f"step={step}.ckpt" for step in best | {6}}


@pytest.mark.parametrize("kill", [3, 4, 5])
def test_the_best_is_remembered_over_a_kill(fit, kill: int) -> None:
    """Killed right before or after the best step, or later."""
    before = fit(Scores(), **MONITORED, kill=kill)
    after = fit(Scores(), **MONITORED, ckpt=True)
    assert files() == {"step=3.ckpt", "step=6.ckpt"} and (before | after).keys() == set(range(1, 7))
    assert linked("best.ckpt") == "step=3.ckpt"


def test_a_value_of_an_earlier_validation_is_not_taken_for_this_steps(fit) -> None:
    """Validated after step 3, saved at 2, 4 and 6."""
    fit(Scores(), **MONITORED | {"validate": 3}, save_top_k=2)
    assert scores() == {"step=3.ckpt": pytest.approx(0.9), "step=6.ckpt": pytest.approx(0.1)}


def test_a_metric_of_training_chooses_among_what_is_saved(fit) -> None:
    losses = fit(monitor="train/loss")
    best = min((2, 4, 6), key=lambda step: losses[step])
    assert linked("best.ckpt") == f"step={best}.ckpt" and files() == {f"step={best}.ckpt", "step=6.ckpt"}


def test_a_metric_that_is_not_there(fit) -> None:
    with pytest.raises(UserError, match=r"did you mean `val/rewards/accuracies`\?"):
        fit(**MONITORED | {"monitor": "val/rewards/accuracy"})
    with pytest.raises(UserError, match=r"set data\.validation"):
        fit(monitor="val/loss")
    fit()
    with pytest.raises(UserError, match=r"no best checkpoint: set checkpoint\.monitor"):
        find_checkpoint(Path("run"), "best")


# ---- finite --------------------------------------------------------------------------------------------------------


class Spoil(pl.Callback):
    """Makes something infinite or NaN after a step."""

    at, what = 3, "weight"

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.at:
            if self.what == "weight":
                next(pl_module.policy.parameters()).data[0] = torch.nan
            else:
                state = next(iter(trainer.optimizers[0].state.values()))
                state["exp_avg_sq"][0] = torch.inf


@pytest.mark.parametrize("what", ["weight", "state"])
def test_the_last_finite_one_stays(fit, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spoil, "what", what)
    with pytest.warns(UserWarning, match="not finite at step 4"):
        fit(Spoil())
    assert files() == {"step=2.ckpt"} and linked("last.ckpt") == "step=2.ckpt"


# ---- full disks ----------------------------------------------------------------------------------------------------


def test_room_is_asked_for_before_anything_is_written(fit, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(kill=3)
    whole = (FOLDER / "step=2.ckpt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(UserError, match=r"step=4\.ckpt needs .* are free there.*--ckpt_path last"):
            fit(ckpt=True)
    assert files() == {"step=2.ckpt"} and (FOLDER / "step=2.ckpt").read_bytes() == whole
    assert len(fit(ckpt=True)) == 4


def test_a_disk_that_is_full_on_the_way(fit, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command line: what was begun is removed, the old one is whole, and one sentence says so."""

    class Full(checkpoint_io.Hashed):
        def write(self, data):
            if Path("run/checkpoints/step=2.ckpt").exists() and self._file.tell() > 10_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io, "Hashed", Full)
        text = refused(capsys, "--config", "run.yaml")
    assert "the disk was full while" in text and "step=4.ckpt was written" in text
    assert files() == {"step=2.ckpt"} and not list(FOLDER.glob(".*"))
    check_resumable(FOLDER / "step=2.ckpt")


def test_what_saving_takes() -> None:
    """Shared memory counts once."""
    x = torch.zeros(100, 10)
    assert bytes_of({"a": x, "b": [x, {"c": x}], "d": b"12345", "e": 3, "f": torch.zeros(2)}) == 4000 + 5 + 8
