"""CPO-SimPO (Xu, 2024), https://github.com/fe1ixxu/CPO_SIMPO: SimPO's contrast with CPO's likelihood term.

By the author of CPO (https://arxiv.org/abs/2401.08417); published as a repository without a paper. Verified there.
Deviations: as in CPO, the likelihood is the mean over the response's tokens by default; the repository writes a sum
(`nll_per_token: false`).
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
            beta: scale of the reward, in 1/nats per token (official run on Llama 3: 10).
            gamma: target margin of beta (a_w - a_l), no unit (official run: 5.4).
            alpha: weight of the chosen response's negative log-likelihood (official run: 0.05); 0 is SimPO.
            nll_per_token: whether that likelihood is the mean over the response's tokens (as in CPO's official code) or
                their sum.
        """
        super().__init__(*args, beta=beta, gamma=gamma, **kwargs)
        self.nll_weight, self.nll_per_token = alpha, nll_per_token
