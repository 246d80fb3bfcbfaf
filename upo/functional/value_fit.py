"""Least squares for a value head on features that stay as they are."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def fit_value(
    head: nn.Module,
    states: Float[Tensor, "B D"],
    index: Int[Tensor, "N"],
    targets: Float[Tensor, "N"],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> None:
    """Fits head(states[index]) to targets by the mean squared error, with AdamW on random batches.

    Args:
        states: one row a prompt.
        index: the prompt of each target.
        seed: of the batches; the same inputs give the same head.
    """
    optimizer, generator = torch.optim.AdamW(head.parameters(), lr=lr), torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(targets), (batch_size,), generator=generator)
            loss = ((head(states[index[rows]]) - targets[rows]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
