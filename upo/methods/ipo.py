"""IPO, Identity Preference Optimisation (Azar et al., 2023), https://arxiv.org/abs/2310.12036.

Differs from DPO: the margin of log-ratios is regressed to the finite target 1 / (2 tau) instead of being pushed up
without end, so that pairs of certain preference do not outweigh the KL constraint. Verified in TRL and HALOs.
Deviations: none.
`IPO` takes sums over tokens, as the paper's equation 17 does. `IPOAveraged` takes means over tokens, which according to
TRL the authors confirmed for their language-model results. Its target is 5 nats PER TOKEN at tau = 0.1, usually out of
reach: choose a much larger tau there (equal lengths n: averaged with tau is summed with tau / n, divided by n^2).
"""

from typing import Any, ClassVar

from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor

from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps


def ipo_loss(
    chosen_logratio: Float[Tensor, "pairs"], rejected_logratio: Float[Tensor, "pairs"], *, tau: float
) -> Float[Tensor, "pairs"]:
    """Equation 17: (h - 1 / (2 tau))^2, h = r_w - r_l; one value per pair, unreduced, in squared nats."""
    return (chosen_logratio - rejected_logratio - 1 / (2 * tau)) ** 2


class IPO(PairwiseMethod):
    """Identity Preference Optimisation on summed log-probs."""

    def __init__(self, *args: Any, tau: PositiveFloat = 0.1, **kwargs: Any):
        """
        Args:
            tau: strength of the KL constraint, in 1/nats (`IPOAveraged`: 1/nats per token); the margin's target is
                1 / (2 tau) nats (TRL, which calls it beta: 0.1).
        """
        super().__init__(*args, **kwargs)
        self.tau = tau

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return ipo_loss(chosen.logratio, rejected.logratio, tau=self.tau)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.tau * logps.logratio


class IPOAveraged(IPO):
    """Identity Preference Optimisation on log-probs that are averaged over tokens."""

    length_normalized: ClassVar[bool] = True

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        chosen_mean, rejected_mean = (x.logratio / x.lengths for x in (chosen, rejected))
        return ipo_loss(chosen_mean, rejected_mean, tau=self.tau)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.tau * logps.logratio / logps.lengths
