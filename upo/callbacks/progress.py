"""Where a run stands in Lightning's counts, by its optimizer steps alone; and a validation that a kill has cut off.

Lightning's own counts depend on the hook in which a checkpoint was saved: after an end within or at the end of an epoch
it would skip steps, train nothing, or number them one too high.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from upo.callbacks.metrics_csv import MetricsCSV


def stand_at(fit_loop: dict[str, Any], step: int, steps: int) -> None:
    """Makes a checkpoint's counts those of a save right after an optimizer step, before its batch is counted as done.

    Args:
        fit_loop: `loops.fit_loop` of the checkpoint.
        step: optimizer steps taken, at least 1.
        steps: of an epoch.
    """
    epoch, taken = (step - 1) // steps, (step - 1) % steps + 1
    batch = fit_loop["epoch_loop.batch_progress"]
    for side, number in (("total", step), ("current", taken)):
        batch[side] |= {"ready": number, "started": number, "processed": number, "completed": number - 1}
        fit_loop["epoch_progress"][side] |= dict.fromkeys(("ready", "started"), epoch + 1)
        fit_loop["epoch_progress"][side] |= dict.fromkeys(("processed", "completed"), epoch)
    batch["is_last_batch"] = taken == steps
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1


def nothing_left(trainer: pl.Trainer, step: int, steps: int) -> bool:
    """Whether a run that has taken so many optimizer steps is at its end."""
    epochs = trainer.max_epochs
    return 0 <= trainer.max_steps <= step or (epochs is not None and 0 <= epochs <= step // steps)


def check_length(trainer: pl.Trainer, steps: int, pairs: int, pairs_per_step: int) -> None:
    """Warns where a run will be shorter, or its steps smaller, than the settings say.

    Args:
        steps: of an epoch.
        pairs: that there are to train on, or what the method counts as one.
    """
    epochs = trainer.max_epochs
    if epochs is not None and epochs > 0 and 0 < steps * epochs < trainer.max_steps:
        warnings.warn(
            f"trainer.max_epochs: {epochs} ends this run after {steps * epochs} of the {trainer.max_steps} steps that "
            "trainer.max_steps asks for; set trainer.max_epochs: -1 to take all of them"
        )
    if pairs < pairs_per_step:
        warnings.warn(
            f"data.pairs_per_step is {pairs_per_step}, but there are only {pairs} to train on: each step has these; "
            "lower data.pairs_per_step, or add data"
        )


def check_turning_points(trainer: pl.Trainer, points: Mapping[int, str]) -> None:
    """Warns where a run ends before its loss has become what its settings say.

    Args:
        points: steps, and what would happen there.
    """
    steps = trainer.estimated_stepping_batches
    for step, what in points.items():
        if step >= steps:
            warnings.warn(
                f"{what} at step {step}, and the run has only {steps:.0f}: what comes behind is never trained on; make "
                "the run longer, or that number smaller"
            )


def validate_if_cut_off(trainer: pl.Trainer) -> None:
    """Makes up for the validation after the last step before a resume, where metrics.csv does not have it."""
    missing = False
    if trainer.is_global_zero:
        ours = [logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
        missing = any(
            not any(name.startswith("val/") for name in logger.row_of(trainer.global_step - 1)) for logger in ours
        )
    if not trainer.strategy.broadcast(missing) or not _validation_is_due(trainer):
        return
    loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
    first = connector._first_loop_iter
    counts = trainer.fit_loop.epoch_progress.current
    completed, counts.completed = counts.completed, (trainer.global_step - 1) // int(trainer.num_training_batches)
    trainer.validating = True
    loop.restarting = False
    loop.run()
    trainer.training = True
    counts.completed = completed
    connector._first_loop_iter = first


def _validation_is_due(trainer: pl.Trainer) -> bool:
    """After the step that a resume begins behind, by the Trainer's `val_check_interval`."""
    step, steps, every = trainer.global_step, trainer.num_training_batches, trainer.check_val_every_n_epoch
    interval = trainer.val_check_batch
    if not step or not trainer.enable_validation or interval is None:
        return False
    if every is None:
        return step % interval == 0
    epoch, taken = (step - 1) // steps, (step - 1) % steps + 1
    return (epoch + 1) % every == 0 and taken % interval == 0
