"""Families of methods: they turn a batch into the arguments of a method's `loss`, and track the metrics they share."""

from torch import Tensor

from upo.data.batch import PairedBatch, UnpairedBatch
from upo.logps import ResponseLogps
from upo.methods.base import Method, Stage, Term
from upo.metrics.means import wins

PREFERENCE_METRICS = (
    *(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins", "ties")),
    *(f"logps/{name}" for name in ("chosen", "rejected")),
)


class PairwiseMethod(Method):
    """Methods that learn from pairs: subclasses define `loss(chosen, rejected)`."""

    batch_type = PairedBatch
    metric_names = PREFERENCE_METRICS

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        """One value a pair [B], unreduced."""
        raise NotImplementedError

    def terms(self, batch: PairedBatch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, Term]:
        return {"preference": Term(self.loss(logps[0::2], logps[1::2]), "prompts")}

    def track(self, stage: Stage, batch: PairedBatch, logps: ResponseLogps) -> None:
        self.means(stage).update(**_preference_means(self.reward(logps), logps, batch.preferred))


class UnpairedMethod(Method):
    """Methods that learn from single labelled responses: subclasses define `loss(responses, desirable, statistics)`."""

    batch_type = UnpairedBatch
    metric_names = PREFERENCE_METRICS

    def loss(self, logps: ResponseLogps, desirable: Tensor, statistics: dict[str, Tensor]) -> Tensor:
        """One value a response [N], unreduced."""
        raise NotImplementedError

    def terms(self, batch: UnpairedBatch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, Term]:
        return {"preference": Term(self.loss(logps, batch.desirable, statistics), "responses")}

    def track(self, stage: Stage, batch: UnpairedBatch, logps: ResponseLogps) -> None:
        self.means(stage).update(**_preference_means(self.reward(logps), logps, batch.preferred))


def _preference_means(reward: Tensor, logps: ResponseLogps, preferred: Tensor) -> dict[str, Tensor]:
    """`PREFERENCE_METRICS`; margins over all (preferred, other) couples of the same prompt, ties count half."""
    prompt = logps.prompt_index
    i, j = (preferred[:, None] & ~preferred & (prompt[:, None] == prompt)).nonzero(as_tuple=True)
    margin = reward[i] - reward[j]
    return {
        "rewards/chosen": reward[preferred],
        "rewards/rejected": reward[~preferred],
        "rewards/accuracies": wins(margin),
        "rewards/margins": margin,
        "rewards/ties": (margin == 0).float(),
        "logps/chosen": logps.logps[preferred],
        "logps/rejected": logps.logps[~preferred],
    }
