"""VPO, Value-Incentivized Preference Optimization (Cen et al., ICLR 2025), https://arxiv.org/abs/2405.19320.

Differs from DPO: the log-ratio of responses of a calibration policy is added. Offline, on fixed data, it is raised
(pessimism); online, on data sampled during training, it is lowered (optimism). `VPO` is the offline form with the
chosen responses as the calibration policy's, which is regularised DPO (RPO, eta = alpha) up to a constant. Online VPO
needs responses sampled during training and has no class here; `vpo_loss` has its sign.
Partly verified: the two signs and the relation to RPO. Derived by us: the formula. From knowledge: alpha.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from upo.methods.common.families import PairwiseMethod
from upo.methods.dpo import dpo_loss
from upo.models.logps import ResponseLogps


def vpo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    calibration_logratio: Float[Tensor, "pairs"],
    *,
    beta: float,
    alpha: float,
    online: bool = False,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(beta (r_w - r_l)) -+ alpha beta r_cal: minus offline (pessimism), plus online (optimism).

    One value per pair, unreduced; log 2 where policy and reference agree.

    Args:
        calibration_logratio: r_cal, the log-ratio of the calibration policy's response to the same prompt, in nats.
    """
    sign = 1 if online else -1
    return dpo_loss(chosen_logratio, rejected_logratio, beta=beta) + sign * alpha * beta * calibration_logratio


class VPO(PairwiseMethod):
    """Value-Incentivized Preference Optimization, offline."""

    initial_loss = 0.693147
    reward_is_log_odds = True

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, alpha: NonNegativeFloat = 0.01, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats; larger stays closer to the reference (DPO's: 0.1).
            alpha: weight of the value term, no unit; 0 is DPO (from knowledge, paper: 0.01 to 0.1).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.alpha = beta, alpha

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return vpo_loss(chosen.logratio, rejected.logratio, chosen.logratio, beta=self.beta, alpha=self.alpha)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
