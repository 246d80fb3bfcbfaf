"""DiscoPOP (Lu et al., 2024), https://arxiv.org/abs/2406.08414: the log-ratio modulated loss that an LLM discovered.

A blend of DPO's logistic loss (dominant for pairs in the wrong order) and an exponential loss (for pairs in the right
order), mixed by a sigmoid of the margin through which the gradient flows. Not convex: with the paper's constants the
start z = 0 lies between a local minimum at z = -0.12 and a maximum at 0.07, so that only noise (or a policy that
differs from the reference) carries a pair over the maximum; with tau above (1 - log 2) / 3 = 0.102 the loss falls with
z at the start. Verified in the official code. Deviation: the exponential part is computed as
exp(log sigmoid(z / tau) - z), because infinity times 0 is NaN at large negative z.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import OpenUnitInterval, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps


def discopop_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    *,
    beta: float,
    tau: float,
) -> Float[Tensor, "pairs"]:
    """-(1 - m) log sigmoid(z) + m exp(-z), m = sigmoid(z / tau), z = beta (r_w - r_l).

    One value per pair, unreduced; (log 2 + 1) / 2 where policy and reference agree.
    """
    z = beta * (chosen_logratio - rejected_logratio)
    return -(-z / tau).sigmoid() * logsigmoid(z) + (logsigmoid(z / tau) - z).exp()


class DiscoPOP(PairwiseMethod):
    """Discovered Preference Optimization."""

    initial_loss = 0.846574

    def __init__(self, *args: Any, beta: PositiveFloat = 0.05, tau: OpenUnitInterval = 0.05, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (paper: 0.05).
            tau: width of the transition between the two losses, in units of z, in (0, 1) (paper: 0.05).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.tau = beta, tau

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return discopop_loss(chosen.logratio, rejected.logratio, beta=self.beta, tau=self.tau)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
