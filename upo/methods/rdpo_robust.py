"""Robust DPO, rDPO (Chowdhury, Kini, Natarajan, 2024), https://arxiv.org/abs/2403.00409.

Differs from DPO: labels are flipped with a known probability, and the loss is corrected so that its expectation over
the flips is DPO's loss on the true labels. The sign of the second term is opposite to conservative DPO's
(`DPO.label_smoothing`). Verified in TRL. Deviations: none.
The loss is negative for confident pairs and unbounded below: do not use its value for early stopping.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.methods.common.families import PairwiseMethod
from upo.methods.common.ranges import FlipRate
from upo.models.logps import ResponseLogps


def robust_dpo_loss(
    chosen_logratio: Float[Tensor, "pairs"], rejected_logratio: Float[Tensor, "pairs"], *, beta: float, flip_rate: float
) -> Float[Tensor, "pairs"]:
    """[-(1 - eps) log sigmoid(z) + eps log sigmoid(-z)] / (1 - 2 eps), z = beta (r_w - r_l).

    One value per pair, unreduced; log 2 where policy and reference agree. It is -log sigmoid(z) - eps z / (1 - 2 eps).
    """
    z = beta * (chosen_logratio - rejected_logratio)
    return (-(1 - flip_rate) * logsigmoid(z) + flip_rate * logsigmoid(-z)) / (1 - 2 * flip_rate)


class RobustDPO(PairwiseMethod):
    """DPO that is unbiased under label flips of a known rate."""

    reward_is_log_odds = True
    initial_loss = 0.693147

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, flip_rate: FlipRate = 0.1, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats; larger stays closer to the reference (paper: 0.1).
            flip_rate: epsilon, probability that a label is flipped, in [0, 0.5); 0 is DPO (paper: 0.1).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.flip_rate = beta, flip_rate

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return robust_dpo_loss(chosen.logratio, rejected.logratio, beta=self.beta, flip_rate=self.flip_rate)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
