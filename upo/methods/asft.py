"""ASFT, Aligned Supervised Fine-Tuning (Wang et al., 2024), https://arxiv.org/abs/2409.10571.

Differs from ORPO: the log-odds of each response are pushed in an absolute direction, where ORPO looks only at their
difference; the loss is pointwise and never below ORPO's. With beta = 1 the whole loss is
-(1 + lambda) a_w - lambda log(1 - exp(a_l)), a the mean log-prob per token: likelihood of the chosen response and
unlikelihood of the rejected one.
Partly verified: the loss follows its restatement in https://arxiv.org/abs/2502.01237, which also adds beta; lambda's
default is from knowledge. Deviations: the likelihood is averaged over pairs, not over the tokens of a micro-batch.
"""

from typing import Any, ClassVar

from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.functional.log1mexp import log_odds
from upo.methods.common.likelihood import ChosenLikelihood
from upo.methods.common.needs import SUMS, Needs
from upo.models.logps import ResponseLogps


def asft_loss(
    chosen_mean: Float[Tensor, "pairs"], rejected_mean: Float[Tensor, "pairs"], *, beta: float = 1.0
) -> Float[Tensor, "pairs"]:
    """L_align: -log sigmoid(beta log odds(y_w)) - log sigmoid(-beta log odds(y_l)), p = exp(mean log-prob).

    One value per pair, unreduced.
    """
    return -logsigmoid(beta * log_odds(chosen_mean)) - logsigmoid(-beta * log_odds(rejected_mean))


class ASFT(ChosenLikelihood):
    """Aligned Supervised Fine-Tuning."""

    needs = Needs(reward=SUMS)
    length_normalized: ClassVar[bool] = True

    def __init__(self, *args: Any, lam: PositiveFloat = 0.1, beta: PositiveFloat = 1.0, **kwargs: Any):
        """
        Args:
            lam: lambda, weight of the alignment loss; the chosen response's negative log-likelihood per token has
                weight 1 (from knowledge, paper: about 0.1; 1 was best in 2502.01237).
            beta: scale of the log-odds, no unit (paper: 1; 2502.01237 varies it).
        """
        super().__init__(*args, **kwargs)
        self.preference_weight, self.beta = lam, beta

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return asft_loss(chosen.mean, rejected.mean, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * log_odds(logps.mean)
