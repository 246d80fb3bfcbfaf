"""SLiC-HF, Sequence Likelihood Calibration with human feedback (Zhao et al., 2023), https://arxiv.org/abs/2305.10425.

Reference-free: a hinge on the margin of log-probs, plus the likelihood of a target, which keeps the model near its
data. Deviations: in the paper the target is a response of the SFT data set; pairs have none, so the chosen response is
taken. Partly verified: loss and defaults, in HALOs; sums over tokens are our reading (the paper may average).
The hinge with a reference is another method: `RSOHinge`.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from upo.methods.common.likelihood import ChosenLikelihood
from upo.methods.common.needs import SUMS, Needs
from upo.models.logps import ResponseLogps


def slic_loss(
    chosen_logps: Float[Tensor, "pairs"], rejected_logps: Float[Tensor, "pairs"], *, delta: float
) -> Float[Tensor, "pairs"]:
    """max(0, delta - log policy(y_w|x) + log policy(y_l|x)), the calibration term; one value per pair, unreduced."""
    return (delta - chosen_logps + rejected_logps).relu()


class SLiCHF(ChosenLikelihood):
    """Sequence Likelihood Calibration with human feedback."""

    needs = Needs(reward=SUMS)

    def __init__(
        self,
        *args: Any,
        delta: PositiveFloat = 1.0,
        lam: NonNegativeFloat = 0.1,
        nll_per_token: bool = False,
        **kwargs: Any,
    ):
        """
        Args:
            delta: margin of log-probs from which on the hinge is 0, in nats (HALOs: 1).
            lam: lambda, weight of the chosen response's negative log-likelihood (HALOs: 0.1).
            nll_per_token: whether that likelihood is the mean over the response's tokens instead of their sum (ours:
                the sum, as we read the paper).
        """
        super().__init__(*args, **kwargs)
        self.delta = delta
        self.nll_weight, self.nll_per_token = lam, nll_per_token

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return slic_loss(chosen.logps, rejected.logps, delta=self.delta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return logps.logps
