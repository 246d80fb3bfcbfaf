"""Attention of the packed layout, computed segment by segment instead of with a dense mask over rows.

A prompt attends causally to itself, once for all its responses; a response attends to its prompt and causally to
itself. Tests compare with scaled dot-product attention under `Responses.attention_mask`, whose cost grows with the
square of a row's length.
"""

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from upo.data.layout import Responses
from upo.errors import UserError
from upo.ops import cpu_attention
from upo.ops.capped_attention import capped_attention
from upo.ops.flex_attention import Blocks, blocks, check_rows

NAME = "upo_prefix"
"""Name of this attention in transformers, after `register`."""


class UnknownAttention(UserError):
    """A layer asks for more than this attention computes, e.g. for a learned sink of its softmax (GPT-OSS)."""


@frozen(eq=False)
class Group:
    """Pieces of similar size that are computed in one call: n prompts, or n responses each with its prompt."""

    queries: Tensor
    """Flat input positions of the queries [n, Q]; shorter pieces repeat their last position."""
    keys: Tensor
    """Flat input positions of the keys [n, S]: for responses their prompt, then themselves."""
    mask: Tensor | None
    """[n, 1, Q, S], True where a query attends to a key; None for prompts: causal attention."""
    real: Tensor
    """Indices into the flattened `queries` that are not repetitions."""

    def to(self, device: torch.device) -> "Group":
        mask = None if self.mask is None else self.mask.to(device)
        return Group(self.queries.to(device), self.keys.to(device), mask, self.real.to(device))


@define(eq=False)
class Segments:
    """The pieces (prompts and responses) of packed rows, and the attention of a layer over them."""

    pieces: Tensor
    """[n, 3]: first flat position in [R T], tokens, tokens of its prompt (0 for a prompt, which comes first)."""
    units: Tensor
    """[prompts + 1]: pieces `units[i]` to `units[i + 1]` (exclusive) are prompt i and its responses."""
    longest: int
    """The largest number of tokens of a piece and its prompt."""
    size: int
    """Number of input positions, R T."""
    device: torch.device
    calls: int = field(default=0, init=False)
    """Number of layers that have called `attend`; if it stays 0, the model ignores this attention."""
    window: int | None = field(default=None, init=False)
    """The narrowest sliding window that a layer has asked for, in tokens."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, cap: float | None = None
    ) -> Tensor:
        """query [R, heads, T, D], key and value [R, key heads, T, D] -> [R, T, heads, D].

        Raises:
            UserError: other rows than those of the plan, e.g. of a picture's patches.
        """
        check_rows(query, key, value, self.size)
        if not cap and cpu_attention.fits(query, key, value):
            return cpu_attention.attend(query, key, value, self.pieces, self.units, self.longest, scale).transpose(1, 2)
        attention: Any = partial(capped_attention, cap=cap) if cap else scaled_dot_product_attention
        rows, heads, width, _ = query.shape
        queries = _gather(query, heads, [g.queries for g in self.groups])
        keys, values = (_gather(x, heads, [g.keys for g in self.groups]) for x in (key, value))
        out = [value.new_zeros(1, heads, value.shape[-1])]
        for group, q, k, v in zip(self.groups, queries, keys, values, strict=True):
            y = attention(q, k, v, attn_mask=group.mask, is_causal=group.mask is None, scale=scale)
            out.append(y.transpose(1, 2).flatten(0, 1).index_select(0, group.real))
        return torch.cat(out).index_select(0, self.order).unflatten(0, (rows, width))

    @cached_property
    def groups(self) -> list[Group]:
        """The pieces in groups of similar size, for PyTorch's attention."""
        first, lengths, prompt_lengths = self.pieces.unbind(1)
        prompts = self.units.diff().cumsum(0) - self.units.diff()
        prompt_first = first[prompts].repeat_interleave(self.units.diff())
        sizes = list(zip(lengths.tolist(), prompt_lengths.tolist(), strict=True))
        kinds = ({i: x for i, x in enumerate(sizes) if (x[1] == 0) == is_prompt} for is_prompt in (True, False))
        members = [m for kind in kinds for m in _by_size(kind)]
        columns = (first, lengths, prompt_lengths, prompt_first)
        return [_group(*(x[m, None] for x in columns)).to(self.device) for m in members]

    @cached_property
    def order(self) -> Tensor:
        """[R T]: row of each position's output in the outputs of all groups, concatenated behind a row of zeros."""
        outputs = torch.cat([g.queries.flatten()[g.real] for g in self.groups])
        order = torch.zeros(self.size, dtype=torch.long, device=self.device)
        order[outputs] = torch.arange(1, len(outputs) + 1, device=self.device)
        return order


def _gather(x: Tensor, heads: int, positions: list[Tensor]) -> tuple[Tensor, ...]:
    """[R, heads, T, D] -> [n, heads, P, D] for the positions [n, P] of each group.

    Gathered in one call, so that the backward pass adds up gradients once.
    """
    flat = x.transpose(1, 2).flatten(0, 1)
    if heads > flat.shape[1]:
        flat = flat.repeat_interleave(heads // flat.shape[1], 1)
    parts = flat.index_select(0, torch.cat([p.flatten() for p in positions])).split([p.numel() for p in positions])
    return tuple(part.unflatten(0, tuple(p.shape)).transpose(1, 2) for part, p in zip(parts, positions, strict=True))


def segments(responses: Responses) -> Segments:
    """The pieces of a packed batch."""
    prompt, response = responses.prompt_segment_ids.flatten().cpu(), responses.response_segment_ids.flatten().cpu()
    number, counts = torch.unique_consecutive(
        (prompt + 1) * (len(responses.lengths) + 1) + response + 1, return_counts=True
    )
    starts = counts.cumsum(0) - counts
    order = number.argsort()[int((number == 0).sum()) :]  # padding is numbered 0; a prompt comes before its responses
    first, lengths = starts[order], counts[order]
    prompt_of_piece, response_of_piece = prompt[first], response[first]
    unit_sizes = prompt_of_piece.unique_consecutive(return_counts=True)[1]
    units = torch.cat([unit_sizes.new_zeros(1), unit_sizes.cumsum(0)])
    prompt_lengths = lengths[units[:-1]].repeat_interleave(unit_sizes) * (response_of_piece >= 0)
    pieces = torch.stack([first, lengths, prompt_lengths], 1)
    longest = int((lengths + prompt_lengths).max())
    return Segments(pieces, units, longest, len(prompt), responses.prompt_segment_ids.device)


CALL = 4096
"""Cost of one more call of attention, in scores: pieces share a call if padding them to one size adds fewer scores."""


def _by_size(pieces: Mapping[int, tuple[int, int]]) -> list[list[int]]:
    """Indices of pieces in groups of similar size.

    Args:
        pieces: by index the number of tokens of a piece and of its prompt.
    """
    groups: list[list[int]] = []
    longest = longest_prompt = 0  # of the last group, to which its pieces are padded
    for i, (length, prompt_length) in sorted(pieces.items(), key=lambda x: (-x[1][0] * sum(x[1]), x[0])):
        padded = [max(longest, length), max(longest_prompt, prompt_length)]
        n = len(groups[-1]) if groups else 0
        scores, group_scores = length * (length + prompt_length), n * longest * (longest_prompt + longest)
        padding = (n + 1) * padded[0] * sum(padded) - group_scores - scores
        if not groups or padding > CALL:
            groups.append([])
            padded = [length, prompt_length]
        groups[-1].append(i)
        longest, longest_prompt = padded
    return groups


def _group(first: Tensor, lengths: Tensor, prompt_lengths: Tensor, prompt_first: Tensor) -> Group:
    """A group of pieces that are all prompts or all responses.

    Args:
        first: flat position of each piece's first token [n, 1].
        lengths: tokens of each piece [n, 1].
        prompt_lengths: tokens of each piece's prompt [n, 1]; 0 if the pieces are prompts.
        prompt_first: flat position of the prompt's first token [n, 1].
    """
    offsets, prompt_offsets = torch.arange(int(lengths.max())), torch.arange(int(prompt_lengths.max()))
    queries = first + offsets.minimum(lengths - 1)
    real = (offsets < lengths).flatten().nonzero()[:, 0]
    if not len(prompt_offsets):
        return Group(queries, queries, None, real)
    keys = torch.cat([prompt_first + prompt_offsets.minimum(prompt_lengths - 1), queries], 1)
    causal = torch.ones(len(offsets), len(offsets), dtype=torch.bool).tril().expand(len(first), -1, -1)
    in_prompt = (prompt_offsets < prompt_lengths)[:, None].expand(-1, len(offsets), -1)
    return Group(queries, keys, torch.cat([in_prompt, causal], 2)[:, None], real)


def plan(responses: Responses) -> Segments | Blocks:
    """The attention of a packed batch on its device: a block mask on GPUs, segments elsewhere."""
    return blocks(responses) if responses.input_ids.is_cuda else segments(responses)


def packed_inputs(responses: Responses, plan: Any) -> dict[str, Any]:
    """Arguments of a transformers model, besides the tokens, for a packed batch.

    Args:
        plan: result of `plan`; the model passes it to `prefix_attention` in each layer.
    """
    # Without a mask transformers would build one [R, 1, T, T] in each forward pass. One of four dimensions it passes on
    # ("If the mask is already 4D, simply return as-is": masking_utils.py, _preprocess_mask_arguments), and
    # `prefix_attention` ignores it.
    unused_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=responses.input_ids.device)
    return {"position_ids": responses.position_ids, "attention_mask": unused_mask, "segments": plan}


def prefix_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it in each layer: query [R, heads, T, D], key and value [R, key heads, T, D].

    Without `segments` (generation, the padded layout) it is transformers' own attention, or `capped_attention`.
    """
    plan: Segments | Blocks | None = options.pop("segments", None)
    cap = options.get("softcap")
    for name in ("s_aux",) if plan is None else ("s_aux", "position_bias"):
        if options.get(name) is not None:
            raise UnknownAttention(
                f"{type(module).__name__} uses `{name}`, which this attention does not support; take another model"
            )
    if plan is not None:
        plan.calls += 1
        windows = [w for w in (plan.window, options.get("sliding_window")) if w]
        plan.window = min(windows, default=None)
        return plan.attend(query, key, value, options.get("scaling"), cap), None
    if cap:
        repeat, causal = query.shape[1] // key.shape[1], attention_mask is None and query.shape[2] > 1
        key, value = (x.repeat_interleave(repeat, 1) for x in (key, value))
        out = capped_attention(query, key, value, attention_mask, causal, scale=options.get("scaling"), cap=cap)
        return out.transpose(1, 2).contiguous(), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[return-value]


def longest(model: Any) -> int | None:
    """Longest prompt with its response for which the packed layout is right, in tokens; None: any length; 0: none.

    The packed layout implements full attention. It is right up to the length of a sliding window, and never for
    convolutions, recurrences and special attention of a model, which do not call it.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention", "sliding_attention"])
    if config._attn_implementation != NAME or kinds - {"full_attention", "sliding_attention"}:
        return 0
    return getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None


def register() -> None:
    """Registers this attention in transformers as `NAME`, with the masks of scaled dot-product attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, prefix_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
