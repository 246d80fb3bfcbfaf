"""Attention of the packed layout without its dense mask: work follows the segments, not the row.

A prompt attends causally to itself, once; a response attends to its prompt and causally to itself. The eager twin is
scaled dot-product attention under `Responses.attention_mask`, whose cost is the square of a row's length.
"""

from functools import partial
from typing import Any

import torch
from attrs import define, field
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from upo.data.layout import Responses
from upo.errors import UserError
from upo.ops.capped_attention import capped_attention
from upo.ops.flex_attention import Blocks, blocks

NAME = "upo_prefix"
"""How transformers knows this attention, once `register` has run."""


@define(eq=False)
class Segments:
    """The pieces of packed rows in the order in which they lie: prompts, responses, padding."""

    sizes: list[int]
    """Tokens of each piece."""
    prompts: list[int | None]
    """For a response the piece that is its prompt; its own place for a prompt; None for padding."""
    masks: list[Tensor | None]
    """For a response [size, prompt's size + size]: all of its prompt, then causal; None for the others."""
    calls: int = field(default=0, init=False)
    """How many layers have asked: a model that never does would attend to everything."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, cap: float | None = None
    ) -> Tensor:
        """query [R, heads, T, D], key and value [R, key heads, T, D] -> [R, T, heads, D]."""
        attention: Any = partial(capped_attention, cap=cap) if cap else scaled_dot_product_attention
        rows, heads, width, _ = query.shape
        # [1, heads, R T, D], then by piece: splitting costs one concatenation in the backward pass, slicing one a piece
        flat = [x.transpose(0, 1).flatten(1, 2)[None] for x in (query, key, value)]
        repeat = heads // key.shape[1]
        q, k, v = (x.repeat_interleave(heads // x.shape[1], 1) if repeat > 1 else x for x in flat)
        q, k, v = (x.split(self.sizes, 2) for x in (q, k, v))
        out = []
        for i, (p, mask) in enumerate(zip(self.prompts, self.masks, strict=True)):
            if p is None:
                out.append(torch.zeros_like(v[i]))
            elif mask is None:
                out.append(attention(q[i], k[i], v[i], is_causal=True, scale=scale))
            else:
                keys, values = torch.cat([k[p], k[i]], 2), torch.cat([v[p], v[i]], 2)
                out.append(attention(q[i], keys, values, attn_mask=mask, scale=scale))
        return torch.cat(out, 2)[0].unflatten(1, (rows, width)).permute(1, 2, 0, 3).contiguous()


def segments(responses: Responses) -> Segments:
    """The pieces of a packed batch."""
    prompt, response = responses.prompt_of.flatten(), responses.response_of.flatten()
    piece = (prompt + 1) * (len(responses.lengths) + 1) + response + 1
    _, counts = torch.unique_consecutive(piece, return_counts=True)
    first = counts.cumsum(0) - counts
    sizes, owner, kind = counts.tolist(), prompt[first].tolist(), response[first].tolist()
    place = {b: i for i, (b, n) in enumerate(zip(owner, kind, strict=True)) if b >= 0 and n < 0}
    prompts = [place.get(b) for b in owner]
    masks: list[Tensor | None] = []
    for size, p, n in zip(sizes, prompts, kind, strict=True):
        seen = sizes[p] if p is not None else 0
        whole = torch.ones(size, seen + size, dtype=torch.bool, device=prompt.device) if n >= 0 else None
        masks.append(None if whole is None else whole.tril(seen))
    return Segments(sizes, prompts, masks)


def plan(responses: Responses) -> Segments | Blocks:
    """How a packed batch is attended to on its device."""
    return blocks(responses) if responses.input_ids.is_cuda else segments(responses)


def prefix_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls in each layer: query [R, heads, T, D], key and value [R, key heads, T, D].

    Without `segments` (generation, the padded layout) it is transformers' own attention, or the capped one.
    """
    plan: Segments | Blocks | None = options.pop("segments", None)
    cap = options.get("softcap")
    for name in ("s_aux",) if plan is None else ("s_aux", "position_bias"):
        if options.get(name) is not None:
            raise UserError(
                f"{type(module).__name__} has `{name}`, which this attention does not know; take another model"
            )
    if plan is not None:
        plan.calls += 1
        return plan.attend(query, key, value, options.get("scaling"), cap), None
    if cap:
        repeat, causal = query.shape[1] // key.shape[1], attention_mask is None and query.shape[2] > 1
        key, value = (x.repeat_interleave(repeat, 1) for x in (key, value))
        out = capped_attention(query, key, value, attention_mask, causal, scale=options.get("scaling"), cap=cap)
        return out.transpose(1, 2).contiguous(), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[return-value]


def register() -> None:
    """Makes transformers know it by `NAME`; masks outside the packed layout are those of plain attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, prefix_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
