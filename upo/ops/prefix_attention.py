"""Attention of the packed layout without its dense mask: work follows the segments, not the row.

A prompt attends causally to itself, once; a response attends to its prompt and causally to itself. The eager twin is
scaled dot-product attention under `Responses.attention_mask`, whose cost is the square of a row's length.
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
"""How transformers knows this attention, once `register` has run."""


class UnknownAttention(UserError):
    """A layer asks for more than this attention computes, e.g. for a learned sink of its softmax (GPT-OSS)."""


@frozen(eq=False)
class Group:
    """Pieces of about one size, attended to in one call: n prompts, or n responses each with its prompt."""

    queries: Tensor
    """Flat input positions [n, Q]; shorter pieces repeat their last one."""
    keys: Tensor
    """The same of what they look at [n, S]: for responses their prompt, then themselves."""
    mask: Tensor | None
    """[n, 1, Q, S], True where a query may look; None for prompts, which are causal."""
    real: Tensor
    """Places of `queries`, flattened, that are no repetition."""

    def to(self, device: torch.device) -> "Group":
        mask = None if self.mask is None else self.mask.to(device)
        return Group(self.queries.to(device), self.keys.to(device), mask, self.real.to(device))


@define(eq=False)
class Segments:
    """The pieces of packed rows, prompts and responses: how each layer attends to them."""

    pieces: Tensor
    """First flat position in [R T], tokens, tokens of the prompt before it [n, 3]; prompts come before their own."""
    units: Tensor
    """Which pieces are a prompt and its responses [prompts + 1]: `units[i]` to `units[i + 1]`."""
    longest: int
    """Tokens of the longest piece and its prompt."""
    size: int
    """Places of the rows, R T."""
    device: torch.device
    calls: int = field(default=0, init=False)
    """How many layers have asked: a model that never does would attend to everything."""
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
        queries = _pick(query, heads, [g.queries for g in self.groups])
        keys, values = (_pick(x, heads, [g.keys for g in self.groups]) for x in (key, value))
        out = [value.new_zeros(1, heads, value.shape[-1])]
        for group, q, k, v in zip(self.groups, queries, keys, values, strict=True):
            y = attention(q, k, v, attn_mask=group.mask, is_causal=group.mask is None, scale=scale)
            out.append(y.transpose(1, 2).flatten(0, 1).index_select(0, group.real))
        return torch.cat(out).index_select(0, self.order).unflatten(0, (rows, width))

    @cached_property
    def groups(self) -> list[Group]:
        """The pieces for attention of PyTorch's own: those of about one size in one call."""
        first, own, before = self.pieces.unbind(1)
        prompts = self.units.diff().cumsum(0) - self.units.diff()
        origin = first[prompts].repeat_interleave(self.units.diff())
        sizes = list(zip(own.tolist(), before.tolist(), strict=True))
        kinds = ({i: x for i, x in enumerate(sizes) if (x[1] == 0) == alone} for alone in (True, False))
        members = [m for kind in kinds for m in _alike(kind)]
        return [_group(*(x[m, None] for x in (first, own, before, origin))).to(self.device) for m in members]

    @cached_property
    def order(self) -> Tensor:
        """For each input position [R T] where its output lies behind those of all groups; for padding a zero."""
        outputs = torch.cat([g.queries.flatten()[g.real] for g in self.groups])
        order = torch.zeros(self.size, dtype=torch.long, device=self.device)
        order[outputs] = torch.arange(1, len(outputs) + 1, device=self.device)
        return order


def _pick(x: Tensor, heads: int, places: list[Tensor]) -> tuple[Tensor, ...]:
    """[R, heads, T, D] -> [n, heads, its places, D] for each group; gathered at once: backward adds up once."""
    flat = x.transpose(1, 2).flatten(0, 1)
    if heads > flat.shape[1]:
        flat = flat.repeat_interleave(heads // flat.shape[1], 1)
    parts = flat.index_select(0, torch.cat([p.flatten() for p in places])).split([p.numel() for p in places])
    return tuple(part.unflatten(0, tuple(p.shape)).transpose(1, 2) for part, p in zip(parts, places, strict=True))


def segments(responses: Responses) -> Segments:
    """The pieces of a packed batch."""
    prompt, response = responses.prompt_segment_ids.flatten().cpu(), responses.response_segment_ids.flatten().cpu()
    number, counts = torch.unique_consecutive(
        (prompt + 1) * (len(responses.lengths) + 1) + response + 1, return_counts=True
    )
    begins = counts.cumsum(0) - counts
    order = number.argsort()[int((number == 0).sum()) :]  # padding is numbered 0; a prompt comes before its responses
    first, own = begins[order], counts[order]
    owner, response = prompt[first], response[first]
    sizes = owner.unique_consecutive(return_counts=True)[1]
    units = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    before = own[units[:-1]].repeat_interleave(sizes) * (response >= 0)
    pieces = torch.stack([first, own, before], 1)
    return Segments(pieces, units, int((own + before).max()), len(prompt), responses.prompt_segment_ids.device)


CALL = 4096
"""Scores that a call of its own is worth: pieces are padded to one size where that costs less."""


def _alike(pieces: Mapping[int, tuple[int, int]]) -> list[list[int]]:
    """Pieces by number, each with its tokens and its prompt's, in groups of about one size."""
    groups: list[list[int]] = []
    wide = high = 0
    for i, (own, before) in sorted(pieces.items(), key=lambda x: (-x[1][0] * sum(x[1]), x[0])):
        padded = [max(high, own), max(wide, before)]
        n = len(groups[-1]) if groups else 0
        more = (n + 1) * padded[0] * sum(padded) - n * high * (wide + high) - own * (own + before)
        if not groups or more > CALL:
            groups.append([])
            padded = [own, before]
        groups[-1].append(i)
        high, wide = padded
    return groups


def _group(start: Tensor, own: Tensor, before: Tensor, origin: Tensor) -> Group:
    """Of pieces of one kind [n, 1]: first position, tokens, tokens of its prompt (0: it is one), where that begins."""
    asked, seen = torch.arange(int(own.max())), torch.arange(int(before.max()))
    queries = start + asked.minimum(own - 1)
    real = (asked < own).flatten().nonzero()[:, 0]
    if not len(seen):
        return Group(queries, queries, None, real)
    keys = torch.cat([origin + seen.minimum(before - 1), queries], 1)
    causal = torch.ones(len(asked), len(asked), dtype=torch.bool).tril().expand(len(start), -1, -1)
    mask = torch.cat([(seen < before)[:, None].expand(-1, len(asked), -1), causal], 2)[:, None]
    return Group(queries, keys, mask, real)


def plan(responses: Responses) -> Segments | Blocks:
    """How a packed batch is attended to on its device."""
    return blocks(responses) if responses.input_ids.is_cuda else segments(responses)


def packed_inputs(responses: Responses, plan: Any) -> dict[str, Any]:
    """What a transformers model is called with besides the tokens of a packed batch.

    Args:
        plan: reaches `prefix_attention` in each layer.
    """
    # Without a mask transformers would build one [R, 1, T, T] in each forward pass; one of four dimensions it takes:
    # "If the mask is already 4D, simply return as-is" (masking_utils.py, _preprocess_mask_arguments). Nobody reads it.
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=responses.input_ids.device)
    return {"position_ids": responses.position_ids, "attention_mask": unread, "segments": plan}


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
            raise UnknownAttention(
                f"{type(module).__name__} has `{name}`, which this attention does not know; take another model"
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
    """How long a prompt and its response may be for a transformers model, in tokens; None for any length.

    The packed layout stands for plain attention: it is right up to a sliding window's length, and never for
    convolutions, recurrences and attention of a model's own, which do not ask for it.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention", "sliding_attention"])
    if config._attn_implementation != NAME or kinds - {"full_attention", "sliding_attention"}:
        return 0
    return getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None


def register() -> None:
    """Makes transformers know it by `NAME`; masks outside the packed layout are those of plain attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, prefix_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
