"""SPPO, Self-Play Preference Optimization, hard and soft (Wu et al., 2024), https://arxiv.org/abs/2405.00675.

Regresses each log-ratio by itself to eta (P - 1/2), P the probability that the response beats a response of the
reference: the multiplicative-weights step of a two-player game. Hard: P is 1 for the chosen and 0 for the rejected
response. Soft: P is the soft label of a pair or, for a list, the mean of its win probabilities against all responses of
the prompt, itself included with 1/2. Self-play needs data sampled from the previous iterate, with that iterate as the
reference.

Verified: the losses, in the official code and in TRL. Deviations: the sum of both squares as in TRL (the official code
takes half of it). From a list the best and the worst response make the pair; scores are read as Bradley-Terry logits.
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
    """(r_w - (P_w - 1/2) / beta)^2 + (r_l - (P_l - 1/2) / beta)^2, beta = 1 / eta.

    One value per pair, in squared nats, unreduced; `chosen_win` and `rejected_win` are P_w and P_l, in [0, 1].
    """
    return (chosen_logratio - (chosen_win - 0.5) / beta) ** 2 + (rejected_logratio - (rejected_win - 0.5) / beta) ** 2


def beats(a: Response, b: Response) -> float:
    """Probability that a beats b: sigmoid of the scores' difference where both have scores, else 1, 1/2 or 0."""
    if a.score is not None and b.score is not None:
        return 0.5 * (1 + math.tanh(0.5 * (a.score - b.score)))
    gap = preference(a) - preference(b)  # type: ignore[operator]
    return 0.5 * ((gap > 0) - (gap < 0) + 1)


class WinRateView(PairedView):
    """Pairs with the column `win_rates`: each response's probability of winning, in [0, 1]."""

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        """The best against the worst response of a prompt, with their win rates against all of its responses."""
        ranked = [r for r in example.responses if preference(r) is not None]
        if example.soft_label is not None and len(ranked) == 2:
            rates = [example.soft_label, 1 - example.soft_label]
        else:
            rates = [sum(beats(a, b) for b in ranked) / len(ranked) for a in ranked]
        if not ranked or min(rates) == max(rates):
            return []
        indices = (rates.index(max(rates)), rates.index(min(rates)))
        pair = example.with_responses(tuple(ranked[i] for i in indices))
        return [Draft(pair, columns={"win_rates": [float(rates[i]) for i in indices]})]


class SPPOHard(PairwiseMethod):
    """Self-Play Preference Optimization with win probabilities of 1 and 0."""

    def __init__(self, *args: Any, beta: PositiveFloat = 1e-3, **kwargs: Any):
        """
        Args:
            beta: 1 / eta, in 1/nats; at P = 1 a log-ratio's target is 1 / (2 beta) nats (paper: 0.001, i.e. 500 nats).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        chosen_win, rejected_win = torch.ones_like(chosen.logps), torch.zeros_like(rejected.logps)
        return sppo_loss(chosen.logratio, rejected.logratio, chosen_win, rejected_win, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio


class SPPOSoft(SPPOHard):
    """Self-Play Preference Optimization with estimated win probabilities."""

    view = WinRateView()

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        logratio, rates = logps.logratio, batch["win_rates"]
        values = sppo_loss(logratio[0::2], logratio[1::2], rates[0::2], rates[1::2], beta=self.beta)
        return {"preference": LossTerm(values, "prompts")}
