"""The moment between training and evaluation, for callbacks that have something to do there."""

from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from attrs import frozen

if TYPE_CHECKING:
    from upo.data.module import PreferenceData
    from upo.methods.common.base import Method


@frozen
class TrainedRun:
    """A run that has been trained and is not evaluated yet."""

    method: "Method"
    """With trained weights; of a sharded run with this rank's shards."""
    data: "PreferenceData"
    folder: Path


class RunCallback(pl.Callback):
    """A callback with one hook more than Lightning's."""

    def on_run_end(self, run: TrainedRun) -> None:
        """What `upo.fit` calls on rank 0, in the callbacks' order, after training and its last validation.

        The evaluation follows, then summary.json: what is written here is there before the run counts as finished, and
        a stage that waits for the run finds it. A run that was killed in between comes here again when it is continued.
        """
