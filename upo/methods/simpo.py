"""SimPO, Simple Preference Optimization (Meng, Xia, Chen, 2024), https://arxiv.org/abs/2405.14734.

Differs from DPO: no reference; the reward is the log-prob averaged over tokens, and the chosen response must win by a
margin gamma. Verified in the official code, which stores gamma / beta (`gamma_beta_ratio`); the paper and this class
take gamma. Deviations: none.
"""

from typing import Any, ClassVar

from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.methods.common.families import PairwiseMethod
from upo.methods.common.needs import SUMS, Needs
from upo.models.logps import ResponseLogps


def simpo_loss(
    chosen_mean: Float[Tensor, "pairs"], rejected_mean: Float[Tensor, "pairs"], *, beta: float, gamma: float
) -> Float[Tensor, "pairs"]:
    """Equation 6: -log sigmoid(beta (a_w - a_l) - gamma), a = log policy(y|x) / |y|; one value per pair, unreduced."""
    return -logsigmoid(beta * (chosen_mean - rejected_mean) - gamma)


class SimPO(PairwiseMethod):
    """Simple Preference Optimization."""

    needs = Needs(reward=SUMS)
    length_normalized: ClassVar[bool] = True

    def __init__(self, *args: Any, beta: PositiveFloat = 2.0, gamma: NonNegativeFloat = 0.5, **kwargs: Any):
        """
        Args:
            beta: scale of the reward, in 1/nats per token (official runs: 2.0 to 2.5, 10 for newer models).
            gamma: target margin of beta (a_w - a_l), no unit (official code: 0.25 beta; its runs: 0.1 to 0.8 beta).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.gamma = beta, gamma

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return simpo_loss(chosen.mean, rejected.mean, beta=self.beta, gamma=self.gamma)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.mean
