"""What reads V(x) off the policy's hidden states, for methods that learn a value beside the policy."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ValueHead(nn.Module):
    """V(x): two hidden layers on the policy's last hidden state, in float32, on detached input."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU(),
            nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU(),
            nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
        with torch.autocast(hidden.device.type, enabled=False):
            dtype = next(self.parameters()).dtype
            return self.layers(hidden.detach().to(dtype))[:, 0]


class ValueHeads(nn.Module):
    """V_i(x) of M objectives, each with a head of its own."""

    def __init__(self, width: int, dropout: float, number: int):
        super().__init__()
        self.heads = nn.ModuleList(ValueHead(width, dropout) for _ in range(number))

    def forward(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B M"]:
        return torch.stack([head(hidden) for head in self.heads], dim=1)
