"""Named weighted means in one state, so that all of them cost one collective."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


class Means(Metric):
    """Weighted means by name: `update(loss=(values, weights), ...)`, `compute() -> {name: mean}`.

    A name without any weight is left out of the result.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = list(names)
        self.add_state("sums", torch.zeros(len(self.names), 2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, **values: Float[Tensor, "_"] | tuple[Float[Tensor, "_"], Tensor | float]) -> None:
        """Adds values by name, each with weight 1 or as a pair (values, weights)."""
        for name, value in values.items():
            value, weight = value if isinstance(value, tuple) else (value, 1.0)
            value = value.detach().double()
            weight = torch.as_tensor(weight, dtype=torch.float64, device=value.device).expand_as(value)
            self.sums[self.names.index(name)] += torch.stack([(value * weight).sum(), weight.sum()])

    def compute(self) -> dict[str, Tensor]:
        return {n: (s / w).float() for n, (s, w) in zip(self.names, self.sums, strict=True) if w > 0}


def wins(margin: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """1 where the margin is positive, 0 where negative, 0.5 for a tie: their mean is an accuracy."""
    return 0.5 * (1 + margin.sign())
