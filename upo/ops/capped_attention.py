"""Attention whose scores have a soft cap (Gemma 2), which scaled dot-product attention does not know."""

import torch
from torch import Tensor


def capped_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, *,
    scale: float | None = None, cap: float,
) -> Tensor:  # fmt: skip
    """softmax(cap tanh(scale q k' / cap)) v under a mask; the arguments are those of scaled dot-product attention.

    Masks are True where a query may look, or are added to the scores.
    """
    scores = cap * torch.tanh(query @ key.mT * ((scale or query.shape[-1] ** -0.5) / cap))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)  # -inf is NaN where all is forbidden
    elif attn_mask is not None:
        scores = scores + attn_mask
    exact = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=exact).to(value.dtype) @ value
