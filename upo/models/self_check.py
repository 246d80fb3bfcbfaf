"""What a model must prove before its log-probs are used: two short examples, laid out packed and padded."""

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from upo.data.layout import collate_responses
from upo.data.units import Group
from upo.errors import UserError
from upo.models.hidden_states import hidden_states
from upo.ops import flex_attention, prefix_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHAPES = ((4, (3, 2)), (2, (3,)))
"""Tokens of each example's prompt and of its responses."""
EXACT, ROUGH = 1e-3, 0.1
"""Relative difference of states that rounding may make: in float32 kernels differ by 1e-6 a layer, in 16 bits by 1e-2;
a mask that is not the model's own moves states by their size."""


@torch.no_grad()
def check_layouts(model: "PreTrainedModel", name: str) -> int | None:
    """Scores two short random examples in both layouts, without the run's random numbers.

    Args:
        name: of the model, for the error.

    Returns:
        Longest prompt with its response that the packed layout is right for, in tokens; None: any length; 0: none,
        which is said in a warning where the model's config gives no reason for it.

    Raises:
        UserError: tokens see what comes after them.
    """
    longest = prefix_attention.longest(model)
    training = model.training
    devices = [] if model.device.type == "cpu" else [model.device]
    with torch.random.fork_rng(devices=devices, device_type="cuda" if not devices else devices[0].type):
        model.eval()
        try:
            return _limit(model, name, longest)
        finally:
            model.train(training)


def _limit(model: "PreTrainedModel", name: str, longest: int | None) -> int | None:
    groups, kind = _examples(model), model.config.model_type
    tolerance = EXACT if model.dtype in (torch.float32, torch.float64) and model.device.type == "cpu" else ROUGH
    padded = collate_responses(groups, "padded", row_tokens=1, pad_id=0).to(model.device)
    states = hidden_states(model, padded)[-1]
    rows = states.unflatten(0, padded.input_ids.shape)
    prompt = SHAPES[0][0]  # of the first two rows, whose responses differ
    if (gap := _gap(rows[0, :prompt], rows[1, :prompt])) > tolerance:
        raise UserError(
            f"{name}: {kind} lets tokens see what comes after them (states of one prompt before two responses differ "
            f"by {gap:.1%}), so it gives no log-probs of responses; take a causal language model"
        )
    if longest == 0:
        return 0
    packed = collate_responses(groups, "packed", row_tokens=64, pad_id=0).to(model.device)
    plan = prefix_attention.plan(flex_attention.arranged(packed))
    try:
        ours = hidden_states(model, packed, plan=plan)[-1][packed.logit_positions]
    except Exception as error:  # whatever a model's own code makes of inputs that it does not know
        return _padded_alone(name, kind, " ".join(str(error).split())[:200])
    longest = min((n for n in (longest, plan.window) if n is not None), default=None)
    within = packed.position_ids.flatten()[packed.logit_positions] < (longest or len(states))
    if (gap := _gap(ours[within], states[padded.logit_positions][within])) > tolerance:
        return _padded_alone(name, kind, f"states differ by {gap:.1%}")
    return longest


def _padded_alone(name: str, kind: str, reason: str) -> int:
    warnings.warn(f"{name}: {kind} cannot take the packed layout ({reason}); all of its batches are padded")
    return 0


def _examples(model: "PreTrainedModel") -> list[Group]:
    """Random tokens, without those that stand for pictures and the like."""
    config = model.config.to_dict()
    taken = {x for name, x in config.items() if name.endswith(("token_id", "token_index")) and isinstance(x, int)}
    vocabulary = model.get_input_embeddings().weight.shape[0]
    known = torch.tensor([i for i in range(min(vocabulary, 4096)) if i not in taken])
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> list[int]:
        return known[torch.randint(len(known), (n,), generator=generator)].tolist()

    return [Group(draw(prompt), tuple(draw(n) for n in responses)) for prompt, responses in SHAPES]


def _gap(a: Tensor, b: Tensor) -> float:
    """The largest difference of two states [n, D], relative to their length; NaN counts as infinite."""
    gap = ((a - b).float().norm(dim=-1) / b.float().norm(dim=-1).clamp(min=1e-30)).max().item()
    return gap if gap == gap else float("inf")
