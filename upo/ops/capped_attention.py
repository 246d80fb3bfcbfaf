"""Attention with a soft cap on the scores (Gemma 2), which scaled dot-product attention does not offer."""

import torch
from torch import Tensor


def capped_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, *,
    scale: float | None = None, cap: float,
) -> Tensor:  # fmt: skip
    """softmax(cap tanh(scale q k' / cap)) v under a mask, with the arguments of scaled dot-product attention.

    Args:
        attn_mask: boolean, True where a query attends to a key, or numbers that are added to the scores.
        cap: the scores are kept within (-cap, cap).
    """
    scores = cap * torch.tanh(query @ key.mT * ((scale or query.shape[-1] ** -0.5) / cap))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)  # -inf: NaN in fully masked rows
    elif attn_mask is not None:
        scores = scores + attn_mask
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=dtype).to(value.dtype) @ value
