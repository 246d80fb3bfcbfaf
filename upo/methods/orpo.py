"""ORPO, Odds Ratio Preference Optimization (Hong, Lee, Thorne, 2024), https://arxiv.org/abs/2403.07691.

One stage without a reference: likelihood of the chosen response, plus a penalty on the odds ratio of rejected to
chosen, where odds = p / (1 - p), p = exp(mean log-prob per token). Usually run on a base model, instead of SFT and
DPO. Verified in the official code. Deviations: the likelihood is that of the response only, where the official default
includes the prompt (its option `disable_prompt_loss` is this form); it is averaged over pairs, not over the tokens of a
micro-batch.
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


def orpo_loss(chosen_mean: Float[Tensor, "pairs"], rejected_mean: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
    """Equation 7, L_OR: -log sigmoid(log odds(y_w) - log odds(y_l)), odds = p / (1 - p), p = exp(mean log-prob).

    One value per pair, unreduced; log 2 where both responses have the same mean log-prob.
    """
    return -logsigmoid(log_odds(chosen_mean) - log_odds(rejected_mean))


class ORPO(ChosenLikelihood):
    """Odds Ratio Preference Optimization."""

    reward_is_log_odds = True
    needs = Needs(reward=SUMS)
    length_normalized: ClassVar[bool] = True

    def __init__(self, *args: Any, lam: PositiveFloat = 0.1, **kwargs: Any):
        """
        Args:
            lam: lambda, weight of the odds-ratio loss; the chosen response's negative log-likelihood per token has
                weight 1 (paper: 0.1 for Mistral; from knowledge: 0.2 to 0.25 for other models).
        """
        super().__init__(*args, **kwargs)
        self.preference_weight = lam

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return orpo_loss(chosen.mean, rejected.mean)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return log_odds(logps.mean)
