"""Which checkpoints a run keeps: the newest, to go on from, and the best by a metric."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.tensor import DTensor

from upo.callbacks.progress import validate_if_cut_off
from upo.errors import UserError, did_you_mean
from upo.runtime.atomic_files import remove_partials, write_json
from upo.runtime.collectives import max_over_ranks
from upo.runtime.run_folder import RunPaths

SCORES, BEST = RunPaths(".").scores.name, RunPaths(".").best.name


class Checkpoints(ModelCheckpoint):
    """Saves when Lightning's callback would, and the end of training where it falls between two saves.

    Kept are the newest, whatever a metric says, and with `monitor` the `save_top_k` best: those of a validation
    metric are saved right after that validation. `last.ckpt` and `best.ckpt` are links. What the run has written stands
    in `scores.json`, so that it is removed when its turn comes, also after a kill; other files are never touched.
    Weights that are not finite are not saved: the last finite ones stay.
    """

    kept: dict[str, float | None]
    """Checkpoints in this folder that the run has written, oldest first, and the metric at each, where it is known."""
    _validated: int | None = None
    """Step of the newest validation."""

    # ---- what was there before --------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        of_validation = self.monitor is not None and self.monitor.startswith("val/")
        if of_validation and not sum(trainer.num_val_batches):
            raise UserError(f"checkpoint.monitor is `{self.monitor}`, but there is no validation; set data.validation")
        if trainer.is_global_zero:
            remove_partials(Path(str(self.dirpath)))
        known = self._known(trainer) if trainer.is_global_zero else ({}, None)
        self.kept, resumed = trainer.strategy.broadcast(known)
        if resumed is not None:
            self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, resumed
        if trainer.ckpt_path is not None:
            validate_if_cut_off(trainer)

    def _known(self, trainer: pl.Trainer) -> tuple[dict[str, float | None], str | None]:
        """What an earlier part of this run has left, and which of it the run goes on from.

        Runs of earlier versions say it in their checkpoints alone.
        """
        if trainer.ckpt_path is None:
            return {}, None
        try:
            said = json.loads(self._path(SCORES).read_text())
            same = (said["monitor"], said["mode"]) == (self.monitor, self.mode)
            known = {name: float(x) if same and x is not None else None for name, x in said["checkpoints"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            known = {Path(self.best_model_path).name: None} if self.best_model_path else {}
            known |= {Path(path).name: float(score) for path, score in self.best_k_models.items()}
        resumed = Path(trainer.ckpt_path).resolve()
        if resumed.parent != Path(str(self.dirpath)).resolve():
            return {name: score for name, score in known.items() if self._path(name).exists()}, None
        known.setdefault(resumed.name, None)
        return {name: score for name, score in known.items() if self._path(name).exists()}, str(resumed)

    def _path(self, name: str) -> Path:
        return Path(str(self.dirpath), Path(name).name)

    # ---- saving -----------------------------------------------------------------------------------------------

    def _save_topk_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """What Lightning calls where a checkpoint is due: it is saved whatever the metric is."""
        if self.save_top_k == 0 or not self._save_new(trainer, monitor_candidates):
            return
        if self.monitor is not None and self._is_fresh(trainer):
            self._rate(trainer, monitor_candidates)
        self._prune(trainer)

    def _save_new(self, trainer: pl.Trainer, candidates: dict[str, Tensor]) -> bool:
        """Saves this step, unless it is saved already; false where there is nothing whole to save."""
        if self._last_global_step_saved == trainer.global_step:
            return True
        if not is_finite(trainer):
            return False
        path = self._get_metric_interpolated_filepath_name(candidates, trainer)
        self.kept[Path(path).name] = None
        self._write(trainer)  # first: what a kill leaves behind is known, and is removed in its turn
        if self.monitor is None:
            self.best_model_path = path
        self._save_checkpoint(trainer, path)
        return True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._validated = trainer.global_step
        if self.monitor is None or not self._is_fresh(trainer) or not self._is_among_best(self._value(trainer)):
            super().on_validation_end(trainer, pl_module)
            return
        self._defer_save_until_validation = False
        candidates = self._monitor_candidates(trainer)
        if self._save_new(trainer, candidates):
            self._rate(trainer, candidates)
            self._prune(trainer)
        self._save_last_checkpoint(trainer, candidates)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.save_on_exception and is_finite(trainer):
            super().on_exception(trainer, pl_module, exception)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._last_global_step_saved != trainer.global_step:
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
        super().on_train_end(trainer, pl_module)

    def _save_last_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if self.save_last != "link" or self.save_top_k == 0:
            if is_finite(trainer):
                super()._save_last_checkpoint(trainer, monitor_candidates)
        elif self._last_checkpoint_saved:
            self.last_model_path = str(self._path(f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"))
            self._link_checkpoint(trainer, self._last_checkpoint_saved, self.last_model_path)

    # ---- the metric -------------------------------------------------------------------------------------------

    def _monitor_candidates(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """Lightning would put off every save until the metric is known."""
        found = super()._monitor_candidates(trainer)
        if self.monitor is not None:
            found.setdefault(self.monitor, torch.tensor(math.nan))
        return found

    def _is_fresh(self, trainer: pl.Trainer) -> bool:
        """Whether the metric is this step's: one of a validation stays until the next."""
        return not str(self.monitor).startswith("val/") or self._validated == trainer.global_step

    def _value(self, trainer: pl.Trainer) -> float:
        name, metrics = str(self.monitor), trainer.callback_metrics
        if name not in metrics:
            raise UserError(f"checkpoint.monitor: no metric is called `{name}`; {did_you_mean(name, metrics)}")
        return trainer.strategy.broadcast(float(metrics[name]))

    def _rate(self, trainer: pl.Trainer, candidates: dict[str, Tensor]) -> None:
        """Notes the metric for the checkpoint of this step."""
        value = self._value(trainer)
        self.kept[Path(self._last_checkpoint_saved).name] = value if math.isfinite(value) else None
        self.current_score = candidates[str(self.monitor)]

    def _best(self) -> list[str]:
        """All with a metric, the best first; of equals the older."""
        sign = 1 if self.mode == "min" else -1
        rated = {name: sign * score for name, score in self.kept.items() if score is not None}
        return sorted(rated, key=lambda name: rated[name])

    def _is_among_best(self, value: float) -> bool:
        best = self._best()
        if not math.isfinite(value):
            return False
        if self.save_top_k < 0 or len(best) < self.save_top_k:
            return True
        worst = self.kept[best[self.save_top_k - 1]] if best and self.save_top_k else None
        return worst is not None and (value < worst if self.mode == "min" else value > worst)

    # ---- removing ---------------------------------------------------------------------------------------------

    def _prune(self, trainer: pl.Trainer) -> None:
        """Removes what is neither the newest nor among the best, and sets the link to the best."""
        best, newest = self._best(), Path(self._last_checkpoint_saved).name
        stay = {newest, *best[: max(0, self.save_top_k)]} if self.save_top_k >= 0 else set(self.kept)
        self.best_k_models = {str(self._path(name)): torch.tensor(self.kept[name]) for name in best if name in stay}
        if best:
            self.best_model_path = str(self._path(best[0]))
            self.best_model_score = self.best_k_models[self.best_model_path]
            self._link_checkpoint(trainer, self.best_model_path, str(self._path(BEST)))
        for name in [name for name in self.kept if name not in stay]:
            trainer.strategy.remove_checkpoint(str(self._path(name)))
            del self.kept[name]
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            write_json(self._path(SCORES), {"monitor": self.monitor, "mode": self.mode, "checkpoints": self.kept})


def is_finite(trainer: pl.Trainer) -> bool:
    """Whether all that is trained, and the optimizer's state, is finite on all ranks; warns where it is not."""
    module: Any = trainer.lightning_module
    states = [x for optimizer in trainer.optimizers for state in optimizer.state.values() for x in state.values()]
    tensors = [p for p in module.parameters() if p.requires_grad] + [x for x in states if isinstance(x, Tensor)]
    local = [x.to_local() if isinstance(x, DTensor) else x.detach() for x in tensors if x.is_floating_point()]
    bad = torch.zeros((), dtype=torch.long, device=module.device)
    for x in local:
        bad += (~x.isfinite().all()).to(bad)
    if not int(max_over_ranks(bad)):
        return True
    if trainer.is_global_zero:
        warnings.warn(
            f"weights or optimizer states are not finite at step {trainer.global_step}: they are not saved, and what "
            "was saved before stays"
        )
    return False
