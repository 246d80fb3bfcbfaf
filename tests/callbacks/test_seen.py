"""The sums of what a run has trained on."""

from pathlib import Path

import pytest
from training import fit, make, pairs_file

from upo.callbacks.seen import Seen
from upo.methods import DPO


class Rows(Seen):
    """Keeps what is logged, step by step."""

    @property
    def state_key(self) -> str:
        return "Seen"

    def on_train_batch_end(self, trainer, *args) -> None:
        super().on_train_batch_end(trainer, *args)
        self.rows = [
            *getattr(self, "rows", []),
            {k: int(v) for k, v in trainer.callback_metrics.items() if "seen" in k},
        ]


def test_sums_over_steps_epochs_and_resumes(tmp_path: Path) -> None:
    whole = Rows()
    done = fit(make(DPO), tmp_path, whole, steps=6, save_every=3, pairs=pairs_file(tmp_path))
    assert [row["seen/pairs"] for row in whole.rows] == [2, 4, 6, 8, 10, 12]
    epoch = sum(len(u.prompt) + sum(len(r) - 1 for r in u.responses) for u in done.data.read.train.units)
    assert whole.rows[3]["seen/tokens"] == epoch, "the last token of a response is never an input"
    resumed = Rows()
    fit(make(DPO), tmp_path, resumed, steps=6, pairs=pairs_file(tmp_path), ckpt_path=str(tmp_path / "step=3.ckpt"))
    assert resumed.rows == whole.rows[3:]


def test_nothing_is_logged_where_a_checkpoint_holds_no_sums(tmp_path: Path) -> None:
    fit(make(DPO), tmp_path, steps=3, save_every=2, pairs=pairs_file(tmp_path))
    resumed = Rows()
    fit(make(DPO), tmp_path, resumed, steps=3, pairs=pairs_file(tmp_path), ckpt_path=str(tmp_path / "step=2.ckpt"))
    assert resumed.rows == [{}]


def test_other_content_is_refused() -> None:
    with pytest.raises(ValueError, match="sums of pairs"):
        Seen().load_state_dict([])  # type: ignore[arg-type]
