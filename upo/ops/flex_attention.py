"""Attention of the packed layout on GPUs: FlexAttention, whose block mask skips masked blocks of 128 tokens.

One kernel for all rows of a batch; its cost is proportional to the number of blocks that are not fully masked. It has
no backward pass on CPUs, where `prefix_attention.Segments` computes the same piece by piece.
"""

import functools
import math
from typing import Any

import torch
from attrs import define, evolve, field
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import pad

from upo.data.layout import Responses
from upo.errors import UserError

BLOCK = 128
"""Tokens of a block of FlexAttention's masks; rows are multiples of it."""
LEAST = 2 * BLOCK
"""The shortest row: a number of blocks that is 1 would be compiled anew."""
KINDS = 64
"""How often a function is compiled: for training, reference and validation of each model and dtype in a process."""


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
        attention: Any = compiled(flex_attention) if self.compiled else flex_attention
        grouped = query.shape[1] != key.shape[1]
        out = attention(
            query, key, value, _capped(cap) if cap else None, block_mask=self.mask, scale=scale, enable_gqa=grouped
        )
        return out.transpose(1, 2).contiguous()


def arranged(packed: Responses) -> Responses:
    """A packed batch in rows that suit the attention of its device; flat positions stay the same."""
    return one_row(packed) if packed.input_ids.is_cuda else packed


def one_row(packed: Responses) -> Responses:
    """The same flat positions as a single row, and behind them padding up to a multiple of `BLOCK` tokens.

    Batches then differ in one number alone, which is never small: kernels are compiled once for all of them.
    """
    size = packed.input_ids.numel()
    more = max(LEAST, math.ceil(size / BLOCK) * BLOCK) - size
    fill = {"input_ids": 0, "position_ids": 0, "prompt_segment_ids": -1, "response_segment_ids": -1}
    return evolve(packed, **{n: pad(getattr(packed, n).view(1, -1), (0, more), value=x) for n, x in fill.items()})


def blocks(responses: Responses, is_compiled: bool = True) -> Blocks:
    """The block mask of a batch; built once per batch and used by every layer."""
    prompt, response = responses.prompt_segment_ids, responses.response_segment_ids

    rows, width = prompt.shape
    create: Any = compiled(create_block_mask) if is_compiled else create_block_mask
    mask = create(  # a lambda: FlexAttention counts the arguments, and type checks in tests wrap functions
        lambda row, head, q, k: (
            (prompt[row, q] == prompt[row, k])
            & ((response[row, k] == -1) | (response[row, q] == response[row, k]))
            & (q >= k)
        ),
        rows, None, width, width, device=str(prompt.device),
    )  # fmt: skip
    return Blocks(mask, is_compiled)


@functools.cache
def _capped(cap: float) -> Any:
    """A function that applies the soft cap to the scores (Gemma 2)."""
    return lambda score, row, head, q, k: cap * torch.tanh(score / cap)


@functools.cache
def compiled(function: Any) -> Any:
    """A function compiled for rows of any length; what cannot be compiled as a whole is an error.

    Where PyTorch has compiled a function too often (8 times, if nothing is said) it would run it as it is written from
    then on: attention with all its scores, 34 GB for 16k tokens and 32 heads.

    Raises:
        UserError: when called; the limit is reached.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    fast: Any = torch.compile(function, dynamic=True, fullgraph=True)

    def call(*args: Any, **options: Any) -> Any:
        with config.patch(recompile_limit=KINDS, fail_on_recompile_limit_hit=True):
            try:
                return fast(*args, **options)
            except FailOnRecompileLimitHit as error:
                raise UserError(
                    f"attention of packed rows was compiled for {KINDS} kinds of batches and models already; set "
                    "data.layout: padded, or put fewer models into one process"
                ) from error

    return call
