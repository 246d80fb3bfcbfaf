"""DPOP, DPO-Positive (Pal et al., 2024), https://arxiv.org/abs/2402.13228, the loss behind the Smaug models.

Differs from DPO: where the chosen response becomes less likely than under the reference, the loss pays for it, inside
the sigmoid; DPO allows that drop as long as the rejected response falls further, as it does in pairs that hardly
differ. Deviations: none. Partly verified: the loss was read, its default values are from knowledge.
At the start every chosen response stands at the kink and the slope below is lambda times steeper: warm up.
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
    """Equation 3: -log sigmoid(beta (r_w - r_l - lambda max(0, -r_w))); one value a pair, unreduced.

    log 2 where policy and reference agree.
    """
    return -logsigmoid(beta * (chosen_logratio - rejected_logratio - lam * (-chosen_logratio).relu()))


class DPOP(PairwiseMethod):
    """DPO that keeps the chosen response at least as likely as under the reference."""

    initial_loss = 0.693147

    def __init__(self, *args: Any, beta: PositiveFloat = 0.3, lam: NonNegativeFloat = 50.0, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (paper, from knowledge: 0.3).
            lam: the paper's lambda: weight of a nat that the chosen response lost; 0 is DPO (from knowledge: 50).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.lam = beta, lam

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return dpop_loss(chosen.logratio, rejected.logratio, beta=self.beta, lam=self.lam)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
