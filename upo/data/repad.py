"""The packed layout turned into the padded one, for models that cannot take it."""

import torch
from attrs import evolve

from upo.data.layout import Responses


def padded(packed: Responses) -> Responses:
    """The same responses in the same order, one row each."""
    r, ids = packed, packed.input_ids.flatten()
    is_prompt = ((r.prompt_segment_ids >= 0) & (r.response_segment_ids < 0)).flatten()
    sizes = torch.bincount(r.prompt_segment_ids.flatten()[is_prompt], minlength=len(r.prompt_end))
    prompt, length = sizes[r.prompt_index, None], r.lengths[:, None]
    first = (r.lengths.cumsum(0) - r.lengths)[:, None]  # where a response's targets begin
    width = int((prompt + length).max()) - 1
    place = torch.arange(width, device=ids.device)[None]
    of_prompt = ids[(r.prompt_end[r.prompt_index, None] - prompt + 1 + place).clamp(max=len(ids) - 1)]
    of_response = r.targets[(first + place - prompt).clamp(0, len(r.targets) - 1)]
    real = place < prompt + length - 1
    number = torch.arange(len(r.lengths), device=ids.device)
    end = number * width + prompt[:, 0] - 1
    return evolve(
        r,
        input_ids=torch.where(place < prompt, of_prompt, of_response) * real,
        position_ids=place * real,
        prompt_segment_ids=torch.where(real, r.prompt_index[:, None], -1),
        response_segment_ids=torch.where(real & (place >= prompt), number[:, None], -1),
        logit_positions=end[r.response_index]
        + torch.arange(len(r.targets), device=ids.device)
        - first[r.response_index, 0],
        prompt_end=end[torch.searchsorted(r.prompt_index, torch.arange(len(sizes), device=ids.device))],
        layout="padded",
    )
