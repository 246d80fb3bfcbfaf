"""Cal-DPO, calibrated DPO (Xiao et al., 2024), https://arxiv.org/abs/2412.14516.

Differs from DPO: each log-ratio is also regressed to +-1 / (2 beta), so that rewards have an absolute scale and the
likelihood of the chosen response does not fall together with that of the rejected one. beta appears ONLY in these
targets, not in the contrast.
Verified: the loss, in its restatement in https://arxiv.org/abs/2502.01237. Deviations: none; the official code halves
the calibration (`calibration_weight: 0.5`).
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from upo.data.batch import Batch
from upo.methods.common.base import LossTerm
from upo.methods.common.families import PREFERENCE_METRICS, PairwiseMethod
from upo.methods.dpo import dpo_loss
from upo.models.logps import ResponseLogps


def calibration_loss(
    chosen_logratio: Float[Tensor, "pairs"], rejected_logratio: Float[Tensor, "pairs"], *, beta: float
) -> Float[Tensor, "pairs"]:
    """(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2; one value per pair, unreduced, in squared nats."""
    return (chosen_logratio - 1 / (2 * beta)) ** 2 + (rejected_logratio + 1 / (2 * beta)) ** 2


class CalDPO(PairwiseMethod):
    """Calibrated DPO.

    -log sigmoid(r_w - r_l) + (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2.
    """

    reward_is_log_odds = True
    metric_names = (*PREFERENCE_METRICS, "loss/preference", "loss/calibration")
    initial_loss = 0.693147

    def __init__(
        self, *args: Any, beta: PositiveFloat = 0.002, calibration_weight: NonNegativeFloat = 1.0, **kwargs: Any
    ):
        """
        Args:
            beta: sets the targets +-1 / (2 beta) of the log-ratios, in 1/nats (official code: 0.002, i.e. 250 nats).
            calibration_weight: weight of the squared errors (paper: 1; official code: 0.5).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.calibration_weight = beta, calibration_weight

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return dpo_loss(chosen.logratio, rejected.logratio, beta=1.0)

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        calibration = calibration_loss(logps[0::2].logratio, logps[1::2].logratio, beta=self.beta)
        return super().terms(batch, logps, statistics) | {
            "calibration": LossTerm(calibration, "prompts", weight=self.calibration_weight)
        }

    def reward(self, logps: ResponseLogps) -> Tensor:
        return logps.logratio
