"""CPO-SimPO (Xu, 2024), https://github.com/fe1ixxu/CPO_SIMPO: SimPO's contrast and CPO's likelihood term.

By the author of CPO (https://arxiv.org/abs/2401.08417), in a repository without a paper. Deviations: as in CPO, the
likelihood is the response's mean over tokens by default and its sum, as the repository writes it, on request.
"""

from typing import Any

from jsonargparse.typing import NonNegativeFloat, PositiveFloat

from upo.methods.common.likelihood import ChosenLikelihood
from upo.methods.simpo import SimPO


class CPOSimPO(ChosenLikelihood, SimPO):
    """SimPO with the likelihood of the chosen response.

    -log sigmoid(beta (a_w - a_l) - gamma) - alpha log policy(y_w|x), a = log policy(y|x) / |y|.
    """

    def __init__(
        self,
        *args: Any,
        beta: PositiveFloat = 10.0,
        gamma: NonNegativeFloat = 5.4,
        alpha: NonNegativeFloat = 0.05,
        nll_per_token: bool = True,
        **kwargs: Any,
    ):
        """
        Args:
            beta: scale of the reward, in 1/nats a token (official run on Llama 3: 10).
            gamma: margin by which beta (a_w - a_l) must be won (official run: 5.4).
            alpha: weight of the chosen response's negative log-likelihood (official run: 0.05); 0 is SimPO.
            nll_per_token: take that likelihood a token, as code does, instead of summed.
        """
        super().__init__(*args, beta=beta, gamma=gamma, **kwargs)
        self.nll_weight, self.nll_per_token = alpha, nll_per_token
