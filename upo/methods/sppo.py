"""SPPO, Self-Play Preference Optimization, hard and soft (Wu et al., 2024), https://arxiv.org/abs/2405.00675.

Regresses each log-ratio by itself to eta (P - 1/2), P the probability that the response beats the reference's own: the
multiplicative-weights step of a two-player game. Hard: P is 1 for the chosen and 0 for the rejected one. Soft: P comes
from a soft label, or is the mean over all responses of the prompt, a response against itself counting one half.
Play against oneself comes from the data (responses of the previous iterate) with that iterate as the reference.

Verified: the losses, in the official code and in TRL. Deviations: the sum of both squares as in TRL (the official code
takes half). From a list the best and the worst response make the pair; scores are taken as Bradley-Terry logits.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor

from upo.data.batch import Batch
from upo.data.example import Example, Response
from upo.data.units import Draft
from upo.data.views import PairedView, preference
from upo.methods.common.base import LossTerm
from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps


def sppo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    chosen_win: Float[Tensor, "pairs"],
    rejected_win: Float[Tensor, "pairs"],
    *,
    beta: float,
) -> Float[Tensor, "pairs"]:
    """(r_w - (P_w - 1/2) / beta)^2 + (r_l - (P_l - 1/2) / beta)^2, beta = 1 / eta; one value per pair, unreduced."""
    return (chosen_logratio - (chosen_win - 0.5) / beta) ** 2 + (rejected_logratio - (rejected_win - 0.5) / beta) ** 2


def beats(a: Response, b: Response) -> float:
    """Probability that a beats b: sigmoid of the scores' difference where both have scores, else 1, 1/2 or 0."""
    if a.score is not None and b.score is not None:
        return 0.5 * (1 + math.tanh(0.5 * (a.score - b.score)))
    gap = preference(a) - preference(b)  # type: ignore[operator]
    return 0.5 * ((gap > 0) - (gap < 0) + 1)


class WinRateView(PairedView):
    """Pairs, each response with its probability of winning: the column `win_rates`."""

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        """The best against the worst response of a prompt, with their win rates against all of its responses."""
        known = [r for r in example.responses if preference(r) is not None]
        if example.soft_label is not None and len(known) == 2:
            rates = [example.soft_label, 1 - example.soft_label]
        else:
            rates = [sum(beats(a, b) for b in known) / len(known) for a in known]
        if not known or min(rates) == max(rates):
            return []
        ends = (rates.index(max(rates)), rates.index(min(rates)))
        pair = example.with_responses(tuple(known[i] for i in ends))
        return [Draft(pair, columns={"win_rates": [float(rates[i]) for i in ends]})]


class SPPOHard(PairwiseMethod):
    """Self-Play Preference Optimization with certain wins."""

    def __init__(self, *args: Any, beta: PositiveFloat = 1e-3, **kwargs: Any):
        """
        Args:
            beta: 1 / eta, in 1/nats; a certain win has the target 1 / (2 beta) nats (paper: 0.001, i.e. 500 nats).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        won, lost = torch.ones_like(chosen.logps), torch.zeros_like(rejected.logps)
        return sppo_loss(chosen.logratio, rejected.logratio, won, lost, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio


class SPPOSoft(SPPOHard):
    """Self-Play Preference Optimization with estimated probabilities of winning."""

    view = WinRateView()

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        ratio, rates = logps.logratio, batch["win_rates"]
        values = sppo_loss(ratio[0::2], ratio[1::2], rates[0::2], rates[1::2], beta=self.beta)
        return {"preference": LossTerm(values, "prompts")}
