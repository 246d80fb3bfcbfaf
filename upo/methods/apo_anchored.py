"""APO-zero and APO-down, Anchored Preference Optimization (D'Oosterlinck et al., 2024), https://arxiv.org/abs/2408.06266.

DPO only asks that the margin grows; anchored losses also fix whether each response becomes more or less likely than
under the reference. APO-zero raises the chosen and lowers the rejected one: for chosen responses better than the
model's own. APO-down lowers both, the rejected one more: for models better than the chosen responses. Both losses are
bounded, so gradients vanish where a response is far from the reference on either side.
Verified: both losses, with their constants, in TRL (some papers drop the 1). Deviations: none.
"""

from typing import Any

import torch
from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor

from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps


def apo_zero_loss(
    chosen_logratio: Float[Tensor, "pairs"], rejected_logratio: Float[Tensor, "pairs"], *, beta: float
) -> Float[Tensor, "pairs"]:
    """(1 - sigmoid(beta r_w)) + sigmoid(beta r_l), unreduced; 1 where policy and reference agree."""
    return torch.sigmoid(-beta * chosen_logratio) + torch.sigmoid(beta * rejected_logratio)


def apo_down_loss(
    chosen_logratio: Float[Tensor, "pairs"], rejected_logratio: Float[Tensor, "pairs"], *, beta: float
) -> Float[Tensor, "pairs"]:
    """sigmoid(beta r_w) + (1 - sigmoid(beta (r_w - r_l))), unreduced; 1 where policy and reference agree."""
    margin = chosen_logratio - rejected_logratio
    return torch.sigmoid(beta * chosen_logratio) + torch.sigmoid(-beta * margin)


class APOZero(PairwiseMethod):
    """Anchored Preference Optimization for chosen responses that are better than the model's own."""

    initial_loss = 1.0

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, **kwargs: Any):
        """
        Args:
            beta: scale of the implicit reward, in 1/nats; with larger values the loss saturates at smaller log-ratios,
                and the policy stays closer to the reference (paper: 0.1).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return apo_zero_loss(chosen.logratio, rejected.logratio, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio


class APODown(APOZero):
    """Anchored Preference Optimization for models that are better than the chosen responses."""

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return apo_down_loss(chosen.logratio, rejected.logratio, beta=self.beta)
