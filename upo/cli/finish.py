"""What comes behind training: the evaluation, what callbacks add, and summary.json."""

from pathlib import Path

from lightning.pytorch import Trainer

from upo.callbacks import loggers
from upo.callbacks.metrics_csv import last_validation
from upo.callbacks.run_end import RunCallback, TrainedRun
from upo.callbacks.run_folder import summarize
from upo.data.module import PreferenceData
from upo.evaluation.evaluation import Evaluation
from upo.evaluation.runs import load_run
from upo.methods.common.base import Method
from upo.parallel.sharding import is_sharded
from upo.runtime.run_folder import RunPaths


def finish_run(
    trainer: Trainer, method: Method, data: PreferenceData, folder: Path, evaluation: Evaluation | None
) -> None:
    """Evaluates the trained policy where that is asked for, and closes the run folder."""
    values = last_validation(trainer, data, RunPaths(folder).metrics)
    if not trainer.is_global_zero:
        return
    run = TrainedRun(method, data, folder)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunCallback):
            callback.on_run_end(run)
    if evaluation is not None:
        method, data = run.method, run.data
        if is_sharded(trainer.strategy):  # rank 0 alone goes on, with whole models
            method, data, _ = load_run(folder, trust=True)
        figures = evaluation.run(method, data, folder)
        loggers.log_evaluation(trainer.loggers, figures, folder, trainer.global_step)
        values |= figures
    summarize(folder, values | loggers.losses(trainer.loggers))
    loggers.close(trainer.loggers, folder)
    print(f"results: {folder}")
