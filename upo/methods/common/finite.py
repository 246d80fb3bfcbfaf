"""A step that went wrong ends the run before its update, with a sentence that says what was not finite."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from upo.errors import RunFailed, UserError
from upo.methods.common.term import LossTerm
from upo.models.checkpoint_files import latest
from upo.models.logps import ResponseLogps

REMEDIES = {
    "an auxiliary reward": "look for it in the data (data_report.json), or in the reward's own code",
    "a log-prob of the reference": "compute it in float32 (policy.dtype: float32), or look at the reference's weights",
    "a log-prob of the policy": (
        "its weights have left the numbers of their dtype: lower the learning rate, warm up longer, set "
        "trainer.gradient_clip_val"
    ),
    "the term": "lower the learning rate or the method's own factors (beta, lam, ...)",
    "the gradient's norm": (
        "the loss is finite, so a backward pass overflows: lower the learning rate or the loss's factors, set "
        "trainer.gradient_clip_val, or take policy.dtype: float32"
    ),
}
"""What to try, by what was not finite."""


class StepValues:
    """What a step computed, without its graph: looked at where loss or gradient are not finite, and only there."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, str, Tensor]] = []
        self.losses: list[Tensor] = []

    def clear(self) -> None:
        self.parts, self.losses = [], []

    def add(self, loss: Tensor, terms: Mapping[str, LossTerm], logps: ResponseLogps) -> None:
        """A micro-batch's."""
        self.losses.append(loss.detach())
        for what, values in (
            ("an auxiliary reward", logps.rewards),
            ("a log-prob of the reference", logps.reference_logps),
            ("a log-prob of the policy", logps.logps),
        ):
            if values is not None:
                self.parts.append((what, what, values.detach()))
        self.parts += [("the term", f"the term `{name}`", term.values.detach()) for name, term in terms.items()]

    def check(self, norms: Sequence[Tensor], step: int, folder: Path) -> None:
        """Waits for the device once, for all values of the step.

        Args:
            norms: of the gradients, by optimizer group; empty where they may overflow for a step (fp16's scaler).
            step: its number, from 0.
            folder: of the run, whose last checkpoint is named.

        Raises:
            RunFailed: loss or gradient are inf or NaN; names the first thing that is.
        """
        loss = torch.stack(self.losses).sum() if self.losses else torch.zeros(())
        if torch.stack([loss.float(), *(norm.to(loss.device, torch.float32) for norm in norms)]).isfinite().all():
            return
        gradient = "the gradient's norm"
        parts = [*self.parts, *((gradient, gradient, norm) for norm in norms), ("the term", "the loss", loss)]
        kind, what, values = next(part for part in parts if not part[2].isfinite().all())
        wrong = values[~values.isfinite()].flatten()[0].item()
        last = latest(folder)
        kept = (
            f"The last checkpoint is {last}; go on from it with --ckpt_path last"
            if last
            else "There is no checkpoint yet"
        )
        raise RunFailed(f"step {step}: {what} is {wrong}, and nothing was updated; {REMEDIES[kind]}.\n{kept}.")


def check_means(values: Mapping[str, Tensor], step: int) -> None:
    """Refuses a validation that is no number.

    Raises:
        RunFailed: its loss is inf or NaN; names all metrics that are.
    """
    if "loss" in values and not values["loss"].isfinite():
        names = ", ".join(name for name, x in values.items() if not x.isfinite().all())
        raise RunFailed(
            f"validation after {step} steps: {names} is not finite, so the policy's weights or the validation data are "
            "broken; lower the learning rate, and look at metrics.csv for when the loss began to grow"
        )


def check_start(logratio: Tensor) -> None:
    """A copied reference must agree with the policy before the first step.

    Raises:
        UserError: it does not.
    """
    if not (gap := logratio.abs().max().item()) <= 1e-2:
        raise UserError(
            f"policy and reference differ by {gap:.3g} nats before the first step, though both come from one "
            "checkpoint: is dropout on, or was the policy changed after `build`?"
        )
