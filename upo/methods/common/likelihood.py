"""The likelihood of the chosen response as a term of the loss: shared by CPO, ORPO, ASFT, SLiC-HF, RPO and Flex-DPO.

Each pair's value is the chosen response's log-prob, summed or averaged over its tokens; values are averaged over the
pairs of the GLOBAL step. Most public code averages over the tokens of a MICRO-batch instead, so that long responses
have a larger weight and the loss depends on how a step is split.
"""

from attrs import evolve
from torch import Tensor

from upo.data.batch import Batch
from upo.methods.common.base import LossTerm
from upo.methods.common.families import PREFERENCE_METRICS, PairwiseMethod
from upo.models.logps import ResponseLogps


class ChosenLikelihood(PairwiseMethod):
    """Adds the negative log-likelihood of the chosen response to a pairwise loss: `class RPO(ChosenLikelihood, DPO)`.

    L = preference_weight * preference + nll_weight * nll; both are logged without their weights.
    """

    metric_names = (*PREFERENCE_METRICS, "loss/preference", "loss/nll")
    preference_weight: float = 1.0
    nll_weight: float = 1.0
    nll_per_token: bool = True
    """Whether the likelihood is averaged over the response's tokens instead of summed."""

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        terms = super().terms(batch, logps, statistics)
        chosen = logps[0::2]
        nll = -(chosen.mean if self.nll_per_token else chosen.logps)
        return terms | {
            "preference": evolve(terms["preference"], weight=self.preference_weight),
            "nll": LossTerm(nll, "prompts", weight=self.nll_weight),
        }
