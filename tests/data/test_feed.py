"""Rounds from a feed, of unequal length, killed and resumed bit for bit; one data module for two methods."""

from pathlib import Path
from typing import Any

import pytest
import torch
import training
from attrs import evolve

from upo.data.module import PreferenceData
from upo.data.rounds import Feed, Round, Split
from upo.data.source import Source
from upo.errors import UserError
from upo.methods.dpo import DPO
from upo.methods.sft import SFT

SIZES = (3, 8, 1, 5)
"""Pairs of each round: 2, 4, 1 and 3 steps of two pairs."""


class Rotating(Feed):
    """Round n has `SIZES[n]` of the pairs, from the n-th on; it also counts how often it was asked."""

    def __init__(self, sizes: tuple[int, ...] = SIZES):
        self.sizes, self.asked = sizes, []

    def next(self, number: int, read: Round, method: Any) -> Round | None:
        self.asked.append(number)
        if number >= len(self.sizes):
            return None
        order = [(number + i) % len(read.train) for i in range(self.sizes[number])]
        units = tuple(read.train.units[i] for i in order)
        return evolve(read, train=Split.of(units, method.view))

    def state_dict(self) -> dict[str, Any]:
        return {"sizes": list(self.sizes)}

    def load_state_dict(self, state: Any) -> None:
        assert tuple(state["sizes"]) == self.sizes


def fit(folder: Path, **options: Any):
    folder.mkdir(exist_ok=True)
    return training.fit(training.make(DPO), folder, steps=99, feed=Rotating(), **options)


def test_each_round_is_passed_through_once(tmp_path):
    done = fit(tmp_path)
    assert done.trainer.global_step == 2 + 4 + 1 + 3
    assert done.data.feeding.begun == [0, 2, 6, 7] and done.data.feeding.feed.asked == [0, 1, 2, 3, 4]
    assert done.data.round.number == 3 and len(done.data.read.train) == 8, "what was read is as it was"


@pytest.mark.turns(3)
@pytest.mark.parametrize("saved", [1, 2, 5, 6, 7, 8])
def test_killed_and_resumed_it_goes_on_bit_for_bit(tmp_path, saved):
    """Checkpoints within a round and at its end; the process dies a step later."""
    whole = fit(tmp_path / "whole").watch
    assert len(whole.losses) == 10
    fit(tmp_path / "killed", stop_at=saved + 1, save_every=saved)
    late = fit(tmp_path / "killed", ckpt_path=str(tmp_path / "killed" / f"step={saved}.ckpt"))
    assert sorted(late.watch.losses) == list(range(saved, 10))
    for step, loss in late.watch.losses.items():
        assert loss == whole.losses[step], step
    assert torch.equal(late.watch.policies[9], whole.policies[9])


def test_a_run_keeps_its_feed(tmp_path):
    fit(tmp_path, stop_at=3, save_every=2)
    with pytest.raises(UserError, match=r"data\.feed"):
        training.fit(training.make(DPO), tmp_path, ckpt_path=str(tmp_path / "step=2.ckpt"))


def test_an_empty_round_is_refused(tmp_path):
    with pytest.raises(UserError, match="round 1 of Rotating has nothing to train on"):
        training.fit(training.make(DPO), tmp_path, steps=99, feed=Rotating((2, 0)))


def losses_of(method: Any, data: PreferenceData) -> list[float]:
    watch = training.Watch()
    training.trainer_for(watch, steps=3).fit(method, datamodule=data)
    return list(watch.losses.values())


def data_module(folder: Path) -> PreferenceData:
    source = Source("hh", path=training.pairs_file(folder))
    return PreferenceData((source,), validation=0, max_length=256, pairs_per_step=2, tokens_per_microbatch=4000)


@pytest.mark.parametrize("first", [DPO, SFT])
def test_one_data_module_serves_two_methods(tmp_path, first):
    """The second method gets its own view of the data: SFT behind DPO must not imitate rejected responses."""
    second = SFT if first is DPO else DPO
    alone = losses_of(training.make(second), data_module(tmp_path))
    torch.manual_seed(0)
    shared = data_module(tmp_path)
    losses_of(training.make(first), shared)
    assert losses_of(training.make(second), shared) == alone
    assert all(u.size == (1 if second is SFT else 2) for u in shared.train.units)


def test_what_serves_the_next_method_too_is_not_read_again(tmp_path, monkeypatch):
    shared = data_module(tmp_path)
    losses_of(training.make(DPO), shared)
    monkeypatch.setattr(PreferenceData, "examples", lambda self: pytest.fail("read again"))
    losses_of(training.make(DPO), shared)
