"""DPO, Direct Preference Optimization (Rafailov et al., 2023), https://arxiv.org/abs/2305.18290.

The Bradley-Terry likelihood of a preference under the implicit reward beta * log(policy / reference).
With `label_smoothing` it is conservative DPO (cDPO, E. Mitchell's note): labels are wrong with that probability.
Verified in the official code. Deviations: none.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.methods.common.families import PairwiseMethod
from upo.methods.common.ranges import FlipRate
from upo.models.logps import ResponseLogps


def dpo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, "pairs"]:
    """Equation 7: -log sigmoid(z), z = beta (r_w - r_l); smoothed: -(1 - eps) log sigmoid(z) - eps log sigmoid(-z).

    One value per pair, unreduced; log 2 where policy and reference agree.
    """
    z = beta * (chosen_logratio - rejected_logratio)
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


class DPO(PairwiseMethod):
    """Direct Preference Optimization."""

    reward_is_log_odds = True
    initial_loss = 0.693147

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, label_smoothing: FlipRate = 0.0, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats; larger stays closer to the reference (paper: 0.1).
            label_smoothing: probability that a label is flipped, in [0, 0.5) (paper: 0); more than 0 is cDPO.
        """
        super().__init__(*args, **kwargs)
        self.beta, self.label_smoothing = beta, label_smoothing

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return dpo_loss(chosen.logratio, rejected.logratio, beta=self.beta, label_smoothing=self.label_smoothing)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
