"""Value heads: V(x) from the policy's hidden states, for methods that learn a value beside the policy."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

Seed = tuple[int, ...]
"""Seed of a random generator: integers of 0 or more."""


class ValueHead(nn.Module):
    """V(x): an MLP with two hidden layers, in float32, on the policy's last hidden state, which is detached."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU(),
            nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU(),
            nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, hidden: Float[Tensor, "B D"], seeds: Sequence[Seed] | None = None) -> Float[Tensor, "B"]:
        """V of each row.

        Args:
            seeds: seed of each row's dropout mask, which therefore does not depend on the other rows; null: no dropout.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            dtype = next(self.parameters()).dtype
            x = hidden.detach().to(dtype)
            masks = None if seeds is None else iter(_masks(seeds, x, self.dropout))
            for layer in self.layers:
                if not isinstance(layer, nn.Dropout):
                    x = layer(x)
                elif masks is not None:
                    x = x * next(masks)
            return x[:, 0]


class ValueHeads(nn.Module):
    """V_i(x) of M auxiliary rewards, each with a head of its own."""

    def __init__(self, width: int, dropout: float, number: int):
        super().__init__()
        self.heads = nn.ModuleList(ValueHead(width, dropout) for _ in range(number))

    def forward(self, hidden: Float[Tensor, "B D"], seeds: Sequence[Seed] | None = None) -> Float[Tensor, "B M"]:
        head_seeds = [None if seeds is None else [(*seed, i) for seed in seeds] for i in range(len(self.heads))]
        return torch.stack([head(hidden, s) for head, s in zip(self.heads, head_seeds, strict=True)], dim=1)


def _masks(seeds: Sequence[Seed], like: Float[Tensor, "B D"], p: float) -> Float[Tensor, "2 B D"]:
    """Dropout masks of the two hidden layers: 0 with probability p, otherwise 1 / (1 - p)."""
    shape = (2, like.shape[1])
    uniform = np.stack([np.random.default_rng(seed).random(shape, dtype=np.float32) for seed in seeds], axis=1)
    return torch.from_numpy(uniform >= p).to(like) / max(1 - p, 1e-9)
