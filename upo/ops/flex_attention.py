"""Attention of the packed layout on GPUs: FlexAttention, whose block mask skips masked blocks of 128 tokens.

One kernel for all rows of a batch; its cost is proportional to the number of blocks that are not fully masked. It has
no backward pass on CPUs, where `prefix_attention.Segments` computes the same piece by piece.
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
    """The attention mask of a packed batch as a block mask, and attention under it."""

    mask: BlockMask
    compiled: bool
    """Whether FlexAttention is compiled; tests also run it uncompiled."""
    calls: int = field(default=0, init=False)
    """Number of layers that have called it in this forward pass."""
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
    """The block mask of a batch; built once per batch and used by every layer."""
    prompt, response = responses.prompt_segment_ids, responses.response_segment_ids

    rows, width = prompt.shape
    mask = create_block_mask(  # a lambda: FlexAttention counts the arguments, and type checks in tests wrap functions
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
    """A function that applies the soft cap to the scores (Gemma 2)."""
    return lambda score, row, head, q, k: cap * torch.tanh(score / cap)


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
