"""DPO-gamma, from "Preference Learning Algorithms Do Not Learn Preference Rankings" (Chen et al., 2024),
https://arxiv.org/abs/2405.19534.

DPO whose reference log-probs are multiplied by gamma: 1 is DPO, 0 is reference-free. With a smaller gamma it takes less
to correct a reference that orders a pair wrongly: the order is right as soon as the loss is below
-log sigmoid(beta gamma c), c = ref_l - ref_w. Verified: the formula, in the paper, which gives no value of gamma.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps


def dpo_gamma_loss(
    chosen_logps: Float[Tensor, "pairs"],
    rejected_logps: Float[Tensor, "pairs"],
    chosen_reference: Float[Tensor, "pairs"],
    rejected_reference: Float[Tensor, "pairs"],
    *,
    beta: float,
    gamma: float,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(beta ((pi_w - pi_l) - gamma (ref_w - ref_l))); one value per pair, unreduced."""
    margin = chosen_logps - rejected_logps - gamma * (chosen_reference - rejected_reference)
    return -logsigmoid(beta * margin)


class DPOGamma(PairwiseMethod):
    """DPO whose reference log-probs are multiplied by gamma."""

    reward_is_log_odds = True

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, gamma: ClosedUnitInterval = 0.5, **kwargs: Any):
        """
        Args:
            beta: scale of the implicit reward, in 1/nats (DPO's: 0.1).
            gamma: factor of the reference's log-probs, in [0, 1] (ours: 0.5).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.gamma = beta, gamma

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return dpo_gamma_loss(
            chosen.logps, rejected.logps, chosen.reference, rejected.reference, beta=self.beta, gamma=self.gamma
        )

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * (logps.logps - self.gamma * logps.reference)
