"""log(1 - exp(x)), the log-prob of "not this", and the log-odds that it gives: stable in value and gradient."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

LIMIT = -1e-6
"""Nearer to 0 than this, in nats, log(1 - exp(x)) goes on as a straight line: the true slope is infinite at 0."""


def log1mexp(x: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """log(1 - exp(x)) of x < 0, in two branches that split at -log 2 (Maechler, 2012).

    Each branch sees its own inputs alone: `where` passes a gradient of 0 to the branch that is not taken, and 0 times
    the infinite slope that this one may have there would be NaN.
    """
    safe = x.clamp(max=LIMIT)
    near = safe > -math.log(2)
    value = torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, safe, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, safe))),
    )
    return value - (x - LIMIT).relu() / math.expm1(-LIMIT)


def log_odds(logp: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """log(p / (1 - p)) from log p."""
    return logp - log1mexp(logp)
