"""TPO, Triple Preference Optimization (Saeidi et al., 2024), https://arxiv.org/abs/2405.16681.

A contrast between chosen and rejected response without a reference and, in the same stage, the likelihood of a third,
gold response. TPO-L contrasts mean log-probs per token with a target margin, as SimPO does. Verified in the official
code: the losses, and beta and alpha of the first version; the meaning of gamma is taken from SimPO. What that code
calls "reference" is the gold response, not a model. Deviation: the likelihood is the mean over a response's tokens,
averaged over triples; the official code averages over all tokens of a micro-batch, which makes a triple's weight depend
on how a step is split.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.data.batch import Batch
from upo.data.example import Example
from upo.data.units import Draft, Unit
from upo.data.views import View, preference
from upo.methods.common.base import LossTerm, Stage
from upo.methods.common.families import PairwiseMethod, _preference_means
from upo.methods.common.needs import SUMS, Needs
from upo.models.logps import ResponseLogps


def tpo_loss(
    chosen: Float[Tensor, "triples"], rejected: Float[Tensor, "triples"], *, beta: float, gamma: float = 0.0
) -> Float[Tensor, "triples"]:
    """-log sigmoid(beta (p_w - p_l) - gamma), p the log-probs: sums in TPO (gamma 0), means over tokens in TPO-L.

    One value per triple, unreduced. TPO adds alpha times the gold response's negative mean log-prob.
    """
    return -logsigmoid(beta * (chosen - rejected) - gamma)


class TripleView(View):
    """Triples: rows 3i, 3i + 1, 3i + 2 are the gold, the chosen and the rejected response of prompt i."""

    wants = "gold, chosen and rejected response (three ranked or scored ones)"
    noun = "triples"

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        """One triple per prompt: the best response is gold, the second chosen, the worst rejected.

        Gold and chosen may tie, chosen and rejected may not.
        """
        ranked = sorted(((p, -i) for i, r in enumerate(example.responses) if (p := preference(r)) is not None))[::-1]
        if len(ranked) < 3 or ranked[1][0] == ranked[-1][0]:
            return []
        return [Draft(example.with_responses(tuple(example.responses[-i] for _, i in (*ranked[:2], ranked[-1]))))]

    def columns(self, example: Example) -> Mapping[str, Sequence[float]]:
        return {"chosen": (False, True, False), "rejected": (False, False, True)}

    def contradicts(self, unit: Unit) -> bool:
        return unit.responses[1] == unit.responses[2]


class TPO(PairwiseMethod):
    """Triple Preference Optimization."""

    reward_is_log_odds = True
    view = TripleView()
    needs = Needs(reward=SUMS)
    metric_names = (*PairwiseMethod.metric_names, "loss/preference", "loss/gold", "logps/gold")

    def __init__(self, *args: Any, beta: PositiveFloat = 0.2, alpha: NonNegativeFloat = 0.9, **kwargs: Any):
        """
        Args:
            beta: scale of the difference of log-probs, in 1/nats (official code: 0.2; later version of the paper:
                0.01).
            alpha: weight of the gold response's negative log-likelihood per token; 0 is DPO without a reference
                (official code: 0.9; later version of the paper: 1).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.alpha = beta, alpha

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return tpo_loss(chosen.logps, rejected.logps, beta=self.beta)

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        return {
            "preference": LossTerm(self.loss(logps[1::3], logps[2::3]), "prompts"),
            "gold": LossTerm(-logps[0::3].mean, "prompts", weight=self.alpha),
        }

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logps

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        means = _preference_means(self.reward(logps), logps, batch["chosen"], batch["rejected"])
        self.means(stage).update(**means, **{"logps/gold": logps.logps[0::3]})


class TPOL(TPO):
    """TPO-L: the contrast of mean log-probs per token, with a target margin."""

    reward_is_log_odds = False
    length_normalized: ClassVar[bool] = True

    def __init__(
        self,
        *args: Any,
        beta: PositiveFloat = 0.01,
        alpha: NonNegativeFloat = 1.0,
        gamma: NonNegativeFloat = 0.5,
        **kwargs: Any,
    ):
        """
        Args:
            beta: scale of the difference of mean log-probs, in 1/nats per token (later version of the paper: 0.01).
            alpha: weight of the gold response's negative log-likelihood per token (later version of the paper: 1).
            gamma: target margin of beta times the difference, no unit (later version of the paper: 0.5).
        """
        super().__init__(*args, beta=beta, alpha=alpha, **kwargs)
        self.gamma = gamma

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return tpo_loss(chosen.mean, rejected.mean, beta=self.beta, gamma=self.gamma)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.mean
