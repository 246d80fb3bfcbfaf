"""APO, Accelerated Preference Optimization (He, Yuan, Gu, 2024), https://arxiv.org/abs/2410.06293.

Iterative DPO is a proximal point method, so Nesterov's extrapolation speeds it up. A round trains any pairwise method
against the reference pi_t; with hat_0 = pi_0 = the start, its result hat_{t+1} makes the next reference

    pi_{t+1}(y|x)  proportional to  hat_{t+1}(y|x) (hat_{t+1}(y|x) / hat_t(y|x))^alpha

which needs no weights of its own: log pi_{t+1} = (1 + alpha) log hat_{t+1} - alpha log hat_t, up to a normaliser that
depends on x alone and cancels in losses of the difference of two log-ratios; others are refused in the first step, by
their gradients. alpha = 0 is iterative DPO. Two frozen models are kept.

Partly verified: proximal point, extrapolation after each round and the gain by 1 - alpha are; the defaults are from
knowledge. Deviations: rounds pass over the data that is there (the paper samples new pairs from pi_t); the policy goes
on from hat_{t+1}, and the run's result is the last hat, not its extrapolation.
"""

import copy
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from torch import Tensor

from upo.callbacks.normaliser import normaliser_cancels
from upo.callbacks.reference_sync import MovingReference, follow
from upo.data.batch import Step
from upo.data.layout import Responses
from upo.errors import UserError
from upo.models.policy import Policy
from upo.models.reference import FrozenReference
from upo.runtime.collectives import max_over_ranks


def extrapolate(new: Float[Tensor, "N"], old: Float[Tensor, "N"], *, alpha: float) -> Float[Tensor, "N"]:
    """log pi_{t+1} = (1 + alpha) log hat_{t+1} - alpha log hat_t of each response, not normalised."""
    return (1 + alpha) * new - alpha * old


class ExtrapolatedReference(FrozenReference):
    """The last round's result, pushed further from the one before."""

    provides = frozenset({"logps"})
    instead = "remove the callback that accelerates it"

    def __init__(self, path: str | None = None, alpha: float = 0.0):
        super().__init__(path)
        self.alpha = alpha

    def build(self, policy: Policy) -> None:
        super().build(policy)
        self.previous = copy.deepcopy(self.model)

    def logps(self, responses: Responses) -> Tensor:
        new, old = FrozenReference.logps(self, responses), self._old(responses)
        return extrapolate(new, old, alpha=self.alpha)

    @torch.no_grad()
    def _old(self, responses: Responses) -> Tensor:
        return self.previous.to(responses.input_ids.device)(responses)["logps"]  # type: ignore[union-attr]


class Acceleration(MovingReference):
    """Rounds of `every` optimizer steps, each against the extrapolated result of the rounds before."""

    def __init__(self, alpha: ClosedUnitInterval = 0.3, every: PositiveInt = 1000):
        """
        Args:
            alpha: extrapolation, in [0, 1); the policy moves 1 / (1 - alpha) times as far a round as with 0 (from
                knowledge: 0.3).
            every: optimizer steps a round; the paper trains three rounds.
        """
        if alpha == 1:
            raise UserError("Acceleration.alpha must be below 1: steps grow by 1 / (1 - alpha)")
        self.alpha, self.every, self._checked = alpha, every, False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not isinstance(self.reference, ExtrapolatedReference):
            self.reference = ExtrapolatedReference(self.reference.path, self.alpha)
            pl_module.set_reference(self.reference)  # type: ignore[operator]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Step, _: int) -> None:
        if not self._checked:
            cancels = normaliser_cancels(pl_module, batch)
            if max_over_ranks(torch.tensor(float(not cancels), device=pl_module.device)):
                raise UserError(
                    f"accelerated references have no normaliser, which must cancel in the loss; that of "
                    f"{type(pl_module).__name__} is no function of the difference of log-ratios: take e.g. DPO or IPO"
                )
            self._checked = True
        super().on_train_batch_start(trainer, pl_module, batch, _)

    def move(self, trainer: pl.Trainer, method: Any) -> None:
        if trainer.global_step % self.every == 0:
            follow(self.reference.previous, self.reference_model, 1.0)  # type: ignore[attr-defined]
            follow(self.reference_model, method.policy, 1.0)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"previous": self.reference.previous.state_dict()}  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.reference.previous.load_state_dict(state_dict["previous"])  # type: ignore[attr-defined]
