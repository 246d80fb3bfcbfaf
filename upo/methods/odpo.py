"""ODPO, DPO with an offset (Amini, Vieira, Cotterell, 2024), https://arxiv.org/abs/2402.10571.

DPO whose margin must exceed an offset that grows with the difference of the responses' scores: alpha log(gap). A gap
below 1 gives a NEGATIVE offset, so choose alpha and the scale of the scores together. Verified in the official code.
Deviations: pairs without two scores, or whose chosen response does not have the higher one, are dropped, because the
logarithm is not defined there; the paper's other offset, the log of the ratio of scores, is not implemented.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.data.batch import Batch
from upo.data.example import Example
from upo.data.units import Draft
from upo.data.views import PairedView, pairs_of
from upo.methods.common.base import LossTerm
from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps


def odpo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    score_gap: Float[Tensor, "pairs"],
    *,
    beta: float,
    alpha: float,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(beta (r_w - r_l) - alpha log(score_w - score_l)); one value per pair, unreduced."""
    return -logsigmoid(beta * (chosen_logratio - rejected_logratio) - alpha * score_gap.log())


class ScoredPairView(PairedView):
    """Pairs of scored responses; column `score_gaps`: a response's score less the other's, > 0 for the chosen one."""

    wants = "pair of scored responses, the chosen one with the higher score"

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        scored = example.with_responses(tuple(r for r in example.responses if r.score is not None))
        return [Draft(pair) for pair in pairs_of(scored, max_pairs) if gap(pair) > 0]

    def columns(self, example: Example) -> Mapping[str, Sequence[float]]:
        return {**super().columns(example), "score_gaps": (float(gap(example)), -float(gap(example)))}


def gap(pair: Example) -> float:
    """The chosen response's score less the rejected one's."""
    chosen, rejected = (response.score for response in pair.responses)
    return chosen - rejected  # type: ignore[operator]


class ODPO(PairwiseMethod):
    """DPO with an offset."""

    view = ScoredPairView()

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, alpha: NonNegativeFloat = 1.0, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (DPO's: 0.1; paper: 0.7 for sentiment, 0.05 for toxicity).
            alpha: factor of the log of the score gap in the offset; 0 is DPO (official code: 1; 0.5 for sentiment).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.alpha = beta, alpha

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        chosen, rejected = logps[0::2].logratio, logps[1::2].logratio
        values = odpo_loss(chosen, rejected, batch["score_gaps"][0::2], beta=self.beta, alpha=self.alpha)
        return {"preference": LossTerm(values, "prompts")}

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
