"""Batches: N responses grouped under B prompts, in the packed layout or its padded twin.

Packed: every prompt is stored once and all of its responses follow it,
`[prompt][response 1]...[response K]`, many prompts to a row. Padded: one row a response.
Both describe the same responses by the same flat lists, so nothing behind `Policy` knows which one ran:

    policy's hidden states, flattened  --[logit_positions]-->  one state a response token  --[targets]-->  its log-prob

A response's last token (EOS) is a target and never an input: nothing is predicted from it.

Batches are `attrs` classes: Lightning's precision plugins walk into dataclasses and would cast float columns.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any, Literal, Self

import torch
from attrs import evolve, fields, frozen
from jaxtyping import Bool, Float, Int
from torch import Tensor

from upo.data.units import Group

Layout = Literal["packed", "padded"]


class Movable:
    """Gives an attrs class of tensors `to` and `pin_memory`, as Lightning and the DataLoader expect."""

    def _map(self, f: Callable[[Tensor], Tensor]) -> Self:
        def apply(x: Any) -> Any:
            if isinstance(x, Tensor):
                return f(x)
            if isinstance(x, Movable):
                return x._map(f)
            if isinstance(x, tuple):
                return tuple(apply(y) for y in x)
            if isinstance(x, Mapping):
                return {name: apply(y) for name, y in x.items()}
            return x

        return evolve(self, **{a.name: apply(getattr(self, a.name)) for a in fields(type(self)) if a.init})  # type: ignore[misc]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda x: x.pin_memory())


@frozen(eq=False)
class Responses(Movable):
    """N responses of B prompts; R rows of T tokens each hold the input.

    Example: N = 3 and B = 2, packed into R = 2 rows of T = 5. Prompt [5, 6] has the responses [7, 2] and [8, 9, 2],
    prompt [4] has [3, 2]; 2 is EOS, padding 0, and there is one auxiliary reward.

        input_ids             [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
        position_ids          [[0, 1, 2, 2, 3], [0, 1, 0, 0, 0]]
        prompt_segment_ids    [[0, 0, 0, 0, 0], [1, 1, -1, -1, -1]]
        response_segment_ids  [[-1, -1, 0, 1, 1], [-1, 2, -1, -1, -1]]
        logit_positions       [1, 2, 1, 3, 4, 5, 6]    6 -> 7, 7 -> EOS; 6 -> 8, 8 -> 9, 9 -> EOS; 4 -> 3, 3 -> EOS
        targets               [7, 2, 8, 9, 2, 3, 2]
        response_index        [0, 0, 1, 1, 1, 2, 2]
        lengths               [2, 3, 2]
        prompt_index          [0, 0, 1]
        prompt_end            [1, 5]
        layout                "packed"
        rewards               [[0.5], [0.25], [1.0]]
        reference_logps       [-3.5, -4.25, -2.0]

    Padded, a response has a row of its own: input_ids [[5, 6, 7, 0], [5, 6, 8, 9], [4, 3, 0, 0]], logit_positions
    [1, 2, 5, 6, 7, 8, 9].
    """

    input_ids: Int[Tensor, "R T"]
    position_ids: Int[Tensor, "R T"]
    prompt_segment_ids: Int[Tensor, "R T"]
    """Which prompt a token belongs to, -1 for padding."""
    response_segment_ids: Int[Tensor, "R T"]
    """Which response a token belongs to, -1 for prompt tokens and padding."""
    logit_positions: Int[Tensor, "tokens"]
    """Flat input position whose hidden state predicts a response token."""
    targets: Int[Tensor, "tokens"]
    """The response tokens, all responses one behind the other."""
    response_index: Int[Tensor, "tokens"]
    """Which of the N responses a response token belongs to."""
    lengths: Int[Tensor, "N"]
    """Scored tokens a response, EOS included."""
    prompt_index: Int[Tensor, "N"]
    """Which of the B prompts a response answers; responses are prompt-major."""
    prompt_end: Int[Tensor, "B"]
    """Flat input position of each prompt's last token."""
    layout: Layout
    rewards: Float[Tensor, "N M"] | None = None
    """Auxiliary rewards by response and objective."""
    reference_logps: Float[Tensor, "N"] | None = None
    """Stored log-probs under the reference, in nats."""

    @property
    def attention_mask(self) -> Bool[Tensor, "R 1 T T"] | None:
        """Who may look at whom: each token at its own prompt and, causally, at its own response.

        None in the padded layout: causal attention never looks at padding on the right.
        Padding looks at padding, so that no row of the mask is empty (softmax would give NaN).
        """
        if self.layout == "padded":
            return None
        prompt, response = self.prompt_segment_ids, self.response_segment_ids
        same_prompt = prompt[:, :, None] == prompt[:, None, :]
        visible = (response[:, None, :] == -1) | (response[:, :, None] == response[:, None, :])
        causal = torch.ones(prompt.shape[1], prompt.shape[1], dtype=torch.bool, device=prompt.device).tril()
        return (same_prompt & visible & causal)[:, None]

    def prompt_means(self, states: Float[Tensor, "positions D"]) -> Float[Tensor, "B D"]:
        """Means over the tokens of each prompt, in float32 at least; a padded prompt stands there K times, alike."""
        prompt = self.prompt_segment_ids.flatten().masked_fill(self.response_segment_ids.flatten() >= 0, -1)
        own, number = prompt >= 0, len(self.prompt_end)
        states = states[own].to(torch.promote_types(states.dtype, torch.float32))
        sums = states.new_zeros(number, states.shape[1]).index_add(0, prompt[own], states)
        return sums / torch.bincount(prompt[own], minlength=number)[:, None]


def collate_responses(groups: Sequence[Group], layout: Layout, *, row_tokens: int, pad_id: int) -> Responses:
    """Puts groups into the packed or the padded layout; responses keep their order, prompt by prompt.

    Args:
        row_tokens: wished length of a packed row, in tokens; a longer group makes all rows as long as itself.
        pad_id: fills rows up; any id will do, masks come from lengths.
    """
    if layout == "packed":
        pieces, places, width = _pack(groups, row_tokens)
    else:
        pieces, places, width = _pad(groups)
    rows = 1 + max(place // width for place in places)
    input_ids = torch.full((rows * width,), pad_id)
    position_ids = torch.zeros(rows * width, dtype=torch.long)
    prompt_segment_ids = torch.full((rows * width,), -1)
    response_segment_ids = torch.full((rows * width,), -1)
    logit_positions: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    prompt_index: list[int] = []
    prompt_end: dict[int, int] = {}
    for (b, prompt, responses, masks), start in zip(pieces, places, strict=True):
        end = start + len(prompt)
        tokens, positions, owner = list(prompt), list(range(len(prompt))), [-1] * len(prompt)
        prompt_end.setdefault(b, end - 1)
        for response, mask in zip(responses, masks, strict=True):
            body = response[:-1]
            before = [end - 1, *range(start + len(tokens), start + len(tokens) + len(body))]
            owner += [len(lengths)] * len(body)
            positions += range(len(prompt), len(prompt) + len(body))
            tokens += body
            logit_positions += before if mask is None else compress(before, mask)
            targets += response if mask is None else compress(response, mask)
            lengths.append(len(response) if mask is None else sum(map(bool, mask)))
            prompt_index.append(b)
        place = slice(start, start + len(tokens))
        input_ids[place] = torch.tensor(tokens)
        position_ids[place] = torch.tensor(positions)
        prompt_segment_ids[place] = b
        response_segment_ids[place] = torch.tensor(owner)
    length = torch.tensor(lengths)
    return Responses(
        *(x.view(rows, width) for x in (input_ids, position_ids, prompt_segment_ids, response_segment_ids)),
        logit_positions=torch.tensor(logit_positions),
        targets=torch.tensor(targets),
        response_index=torch.repeat_interleave(torch.arange(len(lengths)), length),
        lengths=length,
        prompt_index=torch.tensor(prompt_index),
        prompt_end=torch.tensor([prompt_end[b] for b in range(len(groups))]),
        layout=layout,
    )


def _masks(group: Group) -> Sequence[Sequence[bool] | None]:
    return group.scored or (None,) * len(group.responses)


def _pack(groups: Sequence[Group], row_tokens: int) -> tuple[list, list[int], int]:
    """Best fit, longest first; pieces stay in the order of the groups."""
    costs = [group.cost for group in groups]
    width = max(row_tokens, *costs)
    free: list[int] = []
    places = [0] * len(groups)
    for i in sorted(range(len(groups)), key=lambda i: -costs[i]):
        fits = [j for j, room in enumerate(free) if room >= costs[i]]
        j = min(fits, key=lambda j: free[j]) if fits else len(free)
        if not fits:
            free.append(width)
        places[i] = j * width + width - free[j]
        free[j] -= costs[i]
    used = width - min(free)  # rows are no longer than the fullest one
    places = [place // width * used + place % width for place in places]
    return [(b, g.prompt, g.responses, _masks(g)) for b, g in enumerate(groups)], places, used


def _pad(groups: Sequence[Group]) -> tuple[list, list[int], int]:
    pieces = [
        (b, g.prompt, (r,), (m,)) for b, g in enumerate(groups) for r, m in zip(g.responses, _masks(g), strict=True)
    ]
    width = max(len(prompt) + len(response) - 1 for _, prompt, (response,), _ in pieces)
    return pieces, [i * width for i in range(len(pieces))], width
