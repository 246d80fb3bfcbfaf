"""CPO, Contrastive Preference Optimization (Xu et al., 2024), https://arxiv.org/abs/2401.08417.

Differs from DPO: the reference is uniform, so it drops out, and the likelihood of the chosen response is added.
Verified in the official code. Deviations: the paper writes that likelihood as a sum over tokens, while its code
averages over the tokens of a micro-batch, which makes the term far weaker. Here it is the mean over the response's
tokens, or with `nll_per_token: false` the sum.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.methods.common.likelihood import ChosenLikelihood
from upo.methods.common.needs import SUMS, Needs
from upo.models.logps import ResponseLogps


def cpo_loss(
    chosen_logps: Float[Tensor, "pairs"], rejected_logps: Float[Tensor, "pairs"], *, beta: float
) -> Float[Tensor, "pairs"]:
    """L_prefer: -log sigmoid(beta (log policy(y_w|x) - log policy(y_l|x))); one value per pair, unreduced."""
    return -logsigmoid(beta * (chosen_logps - rejected_logps))


class CPO(ChosenLikelihood):
    """Contrastive Preference Optimization."""

    reward_is_log_odds = True
    needs = Needs(reward=SUMS)

    def __init__(
        self,
        *args: Any,
        beta: PositiveFloat = 0.1,
        alpha: NonNegativeFloat = 1.0,
        nll_per_token: bool = True,
        **kwargs: Any,
    ):
        """
        Args:
            beta: scale of the difference of log-probs, in 1/nats (paper: 0.1).
            alpha: weight of the chosen response's negative log-likelihood (paper: 1); 0 is DPO without a reference.
            nll_per_token: whether that likelihood is the mean over the response's tokens (official code: a mean, over a
                micro-batch) or their sum (paper).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta
        self.nll_weight, self.nll_per_token = alpha, nll_per_token

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return cpo_loss(chosen.logps, rejected.logps, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logps
