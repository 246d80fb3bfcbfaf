"""Lists of responses of unequal length as a rectangle: prompts in rows, a mask for what is there."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def rectangle(prompt_index: Int[Tensor, "N"]) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """For prompt-major responses: which response stands where in [B, K], and which places are taken.

    Places without a response point at the first one of their prompt, so that whatever is computed there is finite.
    """
    counts = torch.bincount(prompt_index)
    first = (counts.cumsum(0) - counts)[:, None]
    place = torch.arange(int(counts.max()), device=prompt_index.device)
    mask = place < counts[:, None]
    return torch.where(mask, first + place, first), mask


def masked_log_softmax(x: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """log softmax over the places of `mask`; 0 elsewhere, so that a weight of 0 there gives 0 and not NaN."""
    return x.masked_fill(~mask, -torch.inf).log_softmax(-1).masked_fill(~mask, 0.0)


def masked_softmax(x: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Softmax over the places of `mask`; 0 elsewhere."""
    return x.masked_fill(~mask, -torch.inf).softmax(-1)
