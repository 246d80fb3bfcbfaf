"""RPO, Regularized Preference Optimization (Liu et al., 2024), https://arxiv.org/abs/2405.16436.

Differs from DPO: pessimism against overoptimisation becomes the likelihood of a baseline policy's responses, for which
the paper takes the chosen ones ("DPO + SFT"; other methods are called RPO as well). Verified in the official code.
Deviations: none. Two official forms exist, whose strengths differ by far more than the values of eta:
    beta eta sum of log-probs      eta 0.005, beta 0.01 (Mistral) or 0.05 (Gemma)      the default
    eta mean over tokens           eta 0.2, beta 0.5 (second code, in the appendix)  `nll_per_token`
"""

from typing import Any

from jsonargparse.typing import NonNegativeFloat, PositiveFloat

from upo.methods.common.likelihood import ChosenLikelihood
from upo.methods.dpo import DPO


class RegularizedPO(ChosenLikelihood, DPO):
    """DPO with the likelihood of the chosen response.

    -log sigmoid(beta (r_w - r_l)) - beta eta log policy(y_w|x).
    """

    def __init__(
        self,
        *args: Any,
        beta: PositiveFloat = 0.01,
        eta: NonNegativeFloat = 0.005,
        nll_per_token: bool = False,
        **kwargs: Any,
    ):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (paper: 0.01 for Mistral, 0.05 for Gemma; 0.5 with
                `nll_per_token`).
            eta: strength of the regulariser; 0 is DPO (paper: 0.005; 0.2 with `nll_per_token`).
            nll_per_token: whether the regulariser is eta times the mean log-prob per token (paper's second code)
                instead of beta eta times the sum (paper, first code).
        """
        super().__init__(*args, beta=beta, **kwargs)
        self.nll_weight, self.nll_per_token = eta if nll_per_token else beta * eta, nll_per_token
