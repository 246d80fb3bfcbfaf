"""Where a resumed run takes up its data."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from training import fit, make

from upo.callbacks.checkpoint_io import AtomicCheckpointIO
from upo.data.module import PreferenceData
from upo.methods import DPO


def test_killed_at_the_end_of_an_epoch_and_once_more_in_the_next(tmp_path: Path) -> None:
    """Lightning counts no epoch as begun after the first resume; four steps an epoch."""
    whole = fit(make(DPO), tmp_path, steps=7).watch.losses
    killed = {"steps": 7, "save_every": 1}
    fit(make(DPO), tmp_path, stop_at=4, **killed)
    fit(make(DPO), tmp_path, stop_at=5, ckpt_path=str(tmp_path / "step=4.ckpt"), **killed)
    late = fit(make(DPO), tmp_path, ckpt_path=str(tmp_path / "step=5.ckpt"), **killed).watch.losses
    assert late == {step: whole[step] for step in (5, 6)}


def test_a_folder_is_removed_under_another_name(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "step=1.ckpt").mkdir()
    seen = []
    parent = AtomicCheckpointIO.__mro__[1]
    monkeypatch.setattr(parent, "remove_checkpoint", lambda self, path: seen.append(path.name))
    AtomicCheckpointIO().remove_checkpoint(tmp_path / "step=1.ckpt")
    assert seen == [".step=1.ckpt.partial"] and not (tmp_path / "step=1.ckpt").exists()


@pytest.mark.parametrize(("limit", "steps"), [(1.0, 8), (0.5, 4), (3, 3), (100, 8)])
def test_an_epoch_cut_short_by_limit_train_batches_ends_there(limit, steps) -> None:
    data = PreferenceData(())
    data.trainer = SimpleNamespace(global_step=7, limit_train_batches=limit)
    assert data._start(8) == divmod(7, steps)
