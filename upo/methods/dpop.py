"""DPOP, DPO-Positive (Pal et al., 2024), https://arxiv.org/abs/2402.13228, the loss behind the Smaug models.

Differs from DPO: a penalty inside the sigmoid where the chosen response is less likely than under the reference. DPO
allows that drop as long as the rejected response drops further, which happens with pairs that differ in few tokens.
Partly verified: the loss was read in other code, the default values are from knowledge. Deviations: none.
At the start every chosen response is at the kink of the penalty, below which the slope is 1 + lambda times as steep:
warm the learning rate up.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps


def dpop_loss(
    chosen_logratio: Float[Tensor, "pairs"], rejected_logratio: Float[Tensor, "pairs"], *, beta: float, lam: float
) -> Float[Tensor, "pairs"]:
    """Equation 3: -log sigmoid(beta (r_w - r_l - lambda max(0, -r_w))); one value per pair, unreduced.

    log 2 where policy and reference agree.
    """
    return -logsigmoid(beta * (chosen_logratio - rejected_logratio - lam * (-chosen_logratio).relu()))


class DPOP(PairwiseMethod):
    """DPO that keeps the chosen response at least as likely as under the reference."""

    initial_loss = 0.693147

    def __init__(self, *args: Any, beta: PositiveFloat = 0.3, lam: NonNegativeFloat = 50.0, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (from knowledge, paper: 0.3).
            lam: lambda, weight of each nat that the chosen response has lost; 0 is DPO (from knowledge, paper: 50).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.lam = beta, lam

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return dpop_loss(chosen.logratio, rejected.logratio, beta=self.beta, lam=self.lam)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
