"""Batches to look at, in notebooks: whose token is it, who attends to whom, what is scored.

Colours: grey for prompts, one colour for each response of a prompt, hatched or white for padding.
"""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import torch
from attrs import frozen
from jaxtyping import Bool, Int
from torch import Tensor

from upo.data.layout import Responses
from upo.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

PROMPT = "#c9d1d9"
RESPONSES = ("#a6d8a8", "#f7b7a3", "#a9c9f0", "#e5c1ee", "#f3dd8f", "#9fdcd6")
"""Of the first, second, ... response of a prompt; from the seventh on they repeat."""
LABELLED = 64
"""Longest row, in tokens, whose picture spells its tokens out."""
SIGNS = {"Ġ": " ", "▁": " ", "Ċ": "⏎", "\n": "⏎"}
"""How tokenizers write spaces and line breaks, and how they are shown."""


@frozen
class Html:
    """Text that a notebook shows as HTML."""

    text: str

    def _repr_html_(self) -> str:
        return self.text


def roles(responses: Responses) -> Int[Tensor, "R T"]:
    """What each input token is: -1 padding, 0 prompt, k the k-th response of its prompt."""
    index = responses.prompt_index
    first = torch.searchsorted(index, index)  # prompt-major: where a response's prompt has its first one
    place = torch.arange(len(index), device=index.device) - first + 1
    owner = responses.response_segment_ids
    role = torch.where(owner >= 0, place[owner.clamp(min=0)], torch.zeros_like(owner))
    return torch.where(responses.prompt_segment_ids >= 0, role, torch.full_like(role, -1))


def visible(responses: Responses) -> Bool[Tensor, "R T T"]:
    """Whether the token of the second axis looks at the token of the third; padding looks at nothing."""
    mask = responses.attention_mask
    rows, width = responses.input_ids.shape
    if mask is None:
        seen = torch.ones(width, width, dtype=torch.bool, device=responses.input_ids.device).tril()
        mask = seen.expand(rows, 1, width, width)
    real = responses.prompt_segment_ids >= 0
    return mask[:, 0] & real[:, :, None] & real[:, None, :]


def scored(responses: Responses) -> list[tuple[int, int, int]]:
    """Every term of the log-probs: (flat input position that predicts, token id that is scored, which response)."""
    parts = (responses.logit_positions, responses.targets, responses.response_index)
    return list(zip(*(x.tolist() for x in parts), strict=True))


def show_tokens(responses: Responses, tokenizer: "PreTrainedTokenizerBase") -> Html:
    """The rows as text: coloured by role, bold where a token is scored.

    A response's last token (EOS, or where it was cut) is scored and never an input: it stands in a dashed frame behind
    the token that predicts it. In the packed layout several prompts share a row; a bar marks where one begins.
    """
    width = responses.input_ids.shape[1]
    role = roles(responses).flatten().tolist()
    prompt = responses.prompt_segment_ids.flatten().tolist()
    ends: dict[int, list[tuple[int, int]]] = {}
    last = {row: (position, target) for position, target, row in scored(responses)}
    place = places(responses)
    for row, (position, target) in last.items():
        ends.setdefault(position, []).append((target, place[row]))
    ids, lines = responses.input_ids.flatten().tolist(), []
    for start in range(0, len(ids), width):
        spans = []
        for i in range(start, start + width):
            begins = i > start and role[i] == 0 and prompt[i] != prompt[i - 1]
            spans.append(_span(token_text(tokenizer, ids[i]), role[i], bar=begins))
            spans += [_span(token_text(tokenizer, target), k, ghost=True) for target, k in ends.get(i, ())]
        lines.append(f'<div style="margin:4px 0;line-height:1.9">{"".join(spans)}</div>')
    count = max(role)
    legend = [_span("prompt", 0), *(_span(f"response {k}", k) for k in range(1, count + 1))]
    if -1 in role:
        legend.append(_span("padding", -1))
    legend.append(_span("scored, never an input", min(1, count), ghost=True))
    return Html(f'<div style="font-family:monospace;font-size:13px">{" ".join(legend)}{"".join(lines)}</div>')


def draw_mask(responses: Responses, tokenizer: "PreTrainedTokenizerBase", row: int = 0) -> "Figure":
    """Who attends to whom in one row: a line a token, coloured in the columns that it looks at.

    Right of a line stands what is predicted there, and scored; behind a prompt's last token the first token of each
    of its responses.

    Args:
        row: of the batch's input, from 0.

    Raises:
        UserError: no such row.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows, width = responses.input_ids.shape
    if not 0 <= row < rows:
        raise UserError(f"row={row}: the batch has rows 0 to {rows - 1}")
    role = roles(responses)[row].tolist()
    colours = torch.tensor([to_rgb(colour(k)) for k in role])
    seen = visible(responses)[row].cpu()
    picture = torch.where(seen[..., None], colours.expand(width, width, 3), torch.ones(3))
    picture[[i for i, k in enumerate(role) if k < 0]] = 0.96
    predicted: dict[int, list[str]] = {}
    for position, target, _ in scored(responses):
        if position // width == row:
            predicted.setdefault(position % width, []).append(token_text(tokenizer, target).strip())
    labelled = width <= LABELLED
    side = max(4.5, 0.17 * width) if labelled else 6.0
    figure = Figure(figsize=(side + (2.5 if labelled else 0.5), side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(picture.numpy(), interpolation="nearest")
    axis.set_xlabel("is looked at")
    axis.set_ylabel("looks")
    if labelled:
        ids = responses.input_ids[row].tolist()
        texts = [token_text(tokenizer, i).strip() if k >= 0 else "" for i, k in zip(ids, role, strict=True)]
        axis.set_xticks(range(width), texts, rotation=90, fontsize=7)
        axis.set_yticks(range(width), texts, fontsize=7)
        right = axis.secondary_yaxis("right")
        right.set_yticks(list(predicted), [f"→ {' | '.join(x)}" for x in predicted.values()], fontsize=7)
        right.set_ylabel("predicts, and is scored for", fontsize=8)
        for shown in (axis, right):
            shown.tick_params(length=0)
    else:
        axis.plot([width - 0.5] * len(predicted), list(predicted), "k.", markersize=2, clip_on=False)
    names = ["prompt", *(f"response {k}" for k in range(1, max(role) + 1))]
    patches = [Patch(color=colour(k), label=name) for k, name in enumerate(names)]
    figure.legend(handles=patches, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure


def token_text(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    """A token as a reader wants it: spaces as spaces, line breaks as ⏎."""
    text = str(tokenizer.convert_ids_to_tokens(token))
    for sign, shown in SIGNS.items():
        text = text.replace(sign, shown)
    return text


def places(responses: Responses) -> Sequence[int]:
    """Which response of its prompt each of the N responses is, from 1."""
    index = responses.prompt_index
    return (torch.arange(len(index), device=index.device) - torch.searchsorted(index, index) + 1).tolist()


def colour(role: int) -> str:
    """Of a role that `roles` gives."""
    if role < 0:
        return "#f5f5f5"
    return PROMPT if role == 0 else RESPONSES[(role - 1) % len(RESPONSES)]


def _span(text: str, role: int, *, ghost: bool = False, bar: bool = False) -> str:
    style = f"background:{colour(role)};color:#111;padding:1px 1px;white-space:pre-wrap"
    if role < 0:
        style += ";color:#bbb"
    if role > 0:
        style += ";font-weight:bold"
    if ghost:
        style += ";border:1px dashed #333"
    if bar:
        style += ";border-left:3px solid #333"
    return f'<span style="{style}">{escape(text)}</span>'
