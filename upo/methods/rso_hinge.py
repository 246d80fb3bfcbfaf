"""RSO's hinge-norm loss (Liu et al., 2023), https://arxiv.org/abs/2309.06657.

Differs from DPO: a hinge in place of the logistic loss, so that a pair whose margin is reached has no gradient. Differs
from SLiC-HF: log-probs are normalised by the reference, and there is no likelihood term. Often called SLiC or "hinge"
in public code. Verified in TRL. Deviations: this is the loss alone; RSO also samples its pairs by rejection, before
training.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor

from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps


def rso_hinge_loss(
    chosen_logratio: Float[Tensor, "pairs"], rejected_logratio: Float[Tensor, "pairs"], *, gamma: float
) -> Float[Tensor, "pairs"]:
    """max(0, 1 - gamma (r_w - r_l)); one value per pair, unreduced; 1 where policy and reference agree."""
    return (1 - gamma * (chosen_logratio - rejected_logratio)).relu()


class RSOHinge(PairwiseMethod):
    """The hinge-norm loss of statistical rejection sampling optimization."""

    initial_loss = 1.0

    def __init__(self, *args: Any, gamma: PositiveFloat = 0.05, **kwargs: Any):
        """
        Args:
            gamma: scale of the margin, in 1/nats, called beta in DPO; the gradient is 0 from r_w - r_l = 1 / gamma on
                (paper: 0.05).
        """
        super().__init__(*args, **kwargs)
        self.gamma = gamma

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return rso_hinge_loss(chosen.logratio, rejected.logratio, gamma=self.gamma)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.gamma * logps.logratio
