"""Attention of the packed layout on GPUs: FlexAttention, whose block mask skips what no token may see.

One kernel for all rows of a batch; its cost follows the visible blocks of 128 tokens. It has no backward pass on CPUs,
where `prefix_attention.Segments` does the same piece by piece.
"""

import functools
from typing import Any

import torch
from attrs import define, field
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from upo.data.layout import Responses
from upo.errors import UserError


def check_rows(query: Tensor, key: Tensor, value: Tensor, size: int) -> None:
    """Raises a `UserError` where a layer attends over other positions than those of a packed batch, R T = `size`."""
    shapes = [(x.shape[0], x.shape[2]) for x in (query, key, value)]
    if query.shape[0] * query.shape[2] != size or len(set(shapes)) > 1:
        raise UserError(
            f"a layer attends over rows x positions of {shapes}, a packed batch has {size} tokens: it reads something "
            "else than the batch (pictures, a cache); set data.layout: padded"
        )


@define(eq=False)
class Blocks:
    """Who may look at whom in the rows of a packed batch, by blocks."""

    mask: BlockMask
    compiled: bool
    """Off only where tests look at the plain form."""
    calls: int = field(default=0, init=False)
    window: int | None = field(default=None, init=False)
    """The narrowest sliding window that a layer has asked for, in tokens."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, cap: float | None = None
    ) -> Tensor:
        """query [R, heads, T, D], key and value [R, key heads, T, D] -> [R, T, heads, D]."""
        check_rows(query, key, value, self.mask.shape[0] * self.mask.shape[2])
        attention: Any = _compiled() if self.compiled else flex_attention
        grouped = query.shape[1] != key.shape[1]
        out = attention(
            query, key, value, _capped(cap) if cap else None, block_mask=self.mask, scale=scale, enable_gqa=grouped
        )
        return out.transpose(1, 2).contiguous()


def blocks(responses: Responses, compiled: bool = True) -> Blocks:
    """The block mask of a batch: built once, used by every layer."""
    prompt, response = responses.prompt_segment_ids, responses.response_segment_ids

    rows, width = prompt.shape
    mask = create_block_mask(  # a lambda: FlexAttention counts its arguments, which type checking in tests hides
        lambda row, head, q, k: (
            (prompt[row, q] == prompt[row, k])
            & ((response[row, k] == -1) | (response[row, q] == response[row, k]))
            & (q >= k)
        ),
        rows, None, width, width, device=str(prompt.device), _compile=compiled,
    )  # fmt: skip
    return Blocks(mask, compiled)


@functools.cache
def _capped(cap: float) -> Any:
    """Soft cap of the scores (Gemma 2)."""
    return lambda score, row, head, q, k: cap * torch.tanh(score / cap)


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
