"""Health of UPO's advantage weights and of its value head."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class AdvantageWeights(Metric):
    """Mean, max, 99th percentile and effective sample size of the weights; variance of R that V explains.

    The effective sample size is given as a share in (0, 1]: (sum w)^2 / (n sum w^2), 1 for equal weights.
    The explained variance is 1 - Var(R - V) / Var(R): 1 is perfect, 0 is no better than a constant.
    """

    full_state_update = False
    weights: list[Tensor]
    objective: list[Tensor]
    value: list[Tensor]

    def __init__(self):
        super().__init__()
        for name in ("weights", "objective", "value"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, weights: Float[Tensor, "N"], objective: Float[Tensor, "N"], value: Float[Tensor, "N"]) -> None:
        # float32, because that is what torchmetrics sends for a rank that has seen nothing (only dummies)
        self.weights.append(weights.detach().float())
        self.objective.append(objective.detach().float())
        self.value.append(value.detach().float())

    def compute(self) -> dict[str, Tensor]:
        if not len(self.weights):
            return {}
        w, r, v = (dim_zero_cat(x).double() for x in (self.weights, self.objective, self.value))
        result = {
            "weights/mean": w.mean(),
            "weights/max": w.max(),
            "weights/p99": w.quantile(0.99),
            "weights/ess": w.sum() ** 2 / (len(w) * (w**2).sum()),
            "value/mean": v.mean(),
        }
        if r.var(correction=0) > 1e-12:
            result["value/explained_variance"] = 1 - (r - v).var(correction=0) / r.var(correction=0)
        return {name: x.float() for name, x in result.items() if torch.isfinite(x)}
