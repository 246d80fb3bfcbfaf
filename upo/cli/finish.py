"""What comes behind training: the evaluation, what callbacks add, and summary.json."""

import os
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy

from upo.callbacks import loggers
from upo.callbacks.metrics_csv import last_validation
from upo.callbacks.run_end import RunCallback, TrainedRun
from upo.callbacks.run_folder import summarize
from upo.data.module import PreferenceData
from upo.evaluation.evaluation import Evaluation
from upo.evaluation.runs import load_run
from upo.methods.common.base import Method
from upo.parallel.sharding import is_sharded
from upo.parallel.strategy import Sharded
from upo.runtime.collectives import ALONE, Ranks
from upo.runtime.run_folder import RunPaths


def finish_run(
    trainer: Trainer, method: Method, data: PreferenceData, folder: Path, evaluation: Evaluation | None
) -> None:
    """Evaluates the trained policy where that is asked for, and closes the run folder."""
    values = last_validation(trainer, data, RunPaths(folder).metrics)
    added = [callback for callback in trainer.callbacks if isinstance(callback, RunCallback)]  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        for callback in added:
            callback.on_run_end(TrainedRun(method, data, folder))
    # Others would wait for what a callback does at its leisure, and a rank with a vLLM engine needs the whole card.
    shared = evaluation is not None and evaluation.backend == "transformers" and not added
    shared = shared and not isinstance(trainer.strategy, FSDPStrategy)
    ranks = Ranks(trainer.global_rank, trainer.world_size) if shared else ALONE
    if not trainer.is_global_zero and ranks.size == 1:
        return
    if evaluation is not None:
        if isinstance(trainer.strategy, Sharded) and ranks.size > 1:
            _make_room(trainer)
            trainer.strategy.shard_reference(method.reference)
        elif is_sharded(trainer.strategy):  # rank 0 alone goes on, with whole models
            method, data, _ = load_run(folder, trust=True)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if ranks.rank else nullcontext():
            figures = evaluation.run(method, data, folder, ranks=ranks)
        if ranks.rank:
            return
        loggers.log_evaluation(trainer.loggers, figures, folder, trainer.global_step)
        values |= figures
    summarize(folder, values | loggers.losses(trainer.loggers))
    loggers.close(trainer.loggers, folder)
    print(f"results: {folder}")


def _make_room(trainer: Any) -> None:
    """Lets go of what only training needs: the newest checkpoint has it."""
    for optimizer in trainer.optimizers:
        optimizer.zero_grad()
        optimizer.state.clear()
