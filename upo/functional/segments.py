"""Sums within segments of a flat tensor: the tokens of responses, or their steps, one response behind the other."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad


def discounted_sums(
    x: Float[Tensor, "places"], segment: Int[Tensor, "places"], factor: float
) -> Float[Tensor, "places"]:
    """sum_{i >= t} factor^(i - t) x_i over the rest of place t's segment, with gradients.

    Args:
        segment: which segment a place belongs to; the places of one lie side by side.
    """
    reach = 1
    while reach < len(x) and (same := segment[reach:] == segment[:-reach]).any():
        x = x + pad(torch.where(same, factor**reach * x[reach:], 0.0), (0, reach))  # sums of the next 2 reach places
        reach *= 2
    return x


def later_sums(x: Float[Tensor, "places"], segment: Int[Tensor, "places"]) -> Float[Tensor, "places"]:
    """sum_{i > t} x_i over the rest of place t's segment, detached.

    Args:
        segment: which segment a place belongs to, in ascending order.
    """
    past = x.detach().double().cumsum(0)  # over all segments: float32 would lose digits
    end = past[torch.bincount(segment).cumsum(0) - 1]
    return (end[segment] - past).to(x.dtype)


def segment_means(x: Float[Tensor, "places"], segment: Int[Tensor, "places"], number: int) -> Float[Tensor, "segments"]:
    """The mean over each of `number` segments; NaN for one without places."""
    return x.new_zeros(number).index_add(0, segment, x) / torch.bincount(segment, minlength=number)
