"""Families of methods: each turns a batch into the arguments of a method's `loss` and computes shared metrics."""

import torch
from torch import Tensor

from upo.data.batch import Batch
from upo.data.views import ListwiseView, PairedView, UnpairedView
from upo.functional.lists import rectangle
from upo.methods.common.base import LossTerm, Method, Stage
from upo.methods.common.needs import SUMS, Needs
from upo.metrics.means import wins
from upo.models.logps import ResponseLogps

PREFERENCE_METRICS = (
    *(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins", "ties")),
    *(f"logps/{name}" for name in ("chosen", "rejected")),
)


class PairwiseMethod(Method):
    """Methods that learn from pairs: subclasses define `loss(chosen, rejected)`."""

    view = PairedView()
    needs = Needs(reference=SUMS, reward=SUMS)
    metric_names = PREFERENCE_METRICS

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        """One value per pair [B], unreduced."""
        raise NotImplementedError

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        return {"preference": LossTerm(self.loss(logps[0::2], logps[1::2]), "prompts")}

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        self.means(stage).update(**_preference_means(self.reward(logps), logps, batch.preferred, ~batch.preferred))


class UnpairedMethod(Method):
    """Methods that learn from single labelled responses: subclasses define `loss(responses, desirable, statistics)`."""

    view = UnpairedView()
    needs = Needs(reference=SUMS, reward=SUMS)
    metric_names = PREFERENCE_METRICS

    def loss(self, logps: ResponseLogps, desirable: Tensor, statistics: dict[str, Tensor]) -> Tensor:
        """One value per response [N], unreduced."""
        raise NotImplementedError

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        return {"preference": LossTerm(self.loss(logps, batch.preferred, statistics), "responses")}

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        self.means(stage).update(**_preference_means(self.reward(logps), logps, batch.preferred, ~batch.preferred))


class ListwiseMethod(Method):
    """Methods that learn from K scored responses per prompt: subclasses define `loss(responses, scores, mask)`."""

    view = ListwiseView()
    needs = Needs(reference=SUMS, reward=SUMS)
    metric_names = PREFERENCE_METRICS

    def loss(self, responses: ResponseLogps, scores: Tensor, mask: Tensor) -> Tensor:
        """One value per prompt [B], unreduced, from lists [B, K].

        Args:
            mask: False in places behind the end of a shorter list, which hold copies of its first response.
        """
        raise NotImplementedError

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        rows, mask = rectangle(logps.prompt_index)
        return {"preference": LossTerm(self.loss(logps[rows], batch["scores"][rows], mask), "prompts")}

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        """`chosen` and `rejected` are the best and worst of a list; margins are over all couples of unequal scores."""
        rows, mask = rectangle(logps.prompt_index)
        scores = batch["scores"][rows]
        best = (scores == scores.masked_fill(~mask, -torch.inf).amax(1, keepdim=True))[mask]
        worst = (scores == scores.masked_fill(~mask, torch.inf).amin(1, keepdim=True))[mask]
        better = batch["scores"][:, None] > batch["scores"]
        self.means(stage).update(**_preference_means(self.reward(logps), logps, best & ~worst, worst & ~best, better))


def _preference_means(
    reward: Tensor, logps: ResponseLogps, chosen: Tensor, rejected: Tensor, better: Tensor | None = None
) -> dict[str, Tensor]:
    """The values of `PREFERENCE_METRICS`; a tie counts 1/2 in the accuracy.

    Args:
        reward: implicit rewards [N].
        chosen: mask of the chosen responses [N]; `rejected` likewise.
        better: mask of the couples whose margins are taken [N, N], response i better than j; couples of different
            prompts are left out. By default each chosen response is better than each rejected one.
    """
    prompt = logps.prompt_index
    better = chosen[:, None] & rejected if better is None else better
    i, j = (better & (prompt[:, None] == prompt)).nonzero(as_tuple=True)
    margin = reward[i] - reward[j]
    return {
        "rewards/chosen": reward[chosen],
        "rewards/rejected": reward[rejected],
        "rewards/accuracies": wins(margin),
        "rewards/margins": margin,
        "rewards/ties": (margin == 0).float(),
        "logps/chosen": logps.logps[chosen],
        "logps/rejected": logps.logps[rejected],
    }
