"""Terms of a loss, and how they are reduced."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor

MeanOver = Literal["prompts", "responses", "tokens"]


@frozen(eq=False)
class LossTerm:
    """One term of the loss, unreduced."""

    values: Tensor
    """One value per prompt (a pair counts as one), per response, or per response token of the micro-batch."""
    mean_over: MeanOver
    """Whose number in the GLOBAL step the sum of all values is divided by. It may be tokens where each value is a
    response's sum over its tokens, as in SFT."""
    weight: float = field(default=1.0, kw_only=True)
    """Factor in the total loss; `train/loss/<term>` is logged without it."""


def total(terms: Iterable[LossTerm], counts: Mapping[str, int]) -> Tensor:
    """A micro-batch's share of the loss of a step: the weighted sum of all terms, each divided by its count.

    Args:
        counts: number of prompts, responses and tokens of the GLOBAL step.
    """
    return torch.stack([t.weight * t.values.sum() / counts[t.mean_over] for t in terms]).sum()


def common(terms: Iterable[LossTerm]) -> MeanOver:
    """What all terms are averaged over, prompts where they differ; its count is a step's weight in the logged loss."""
    choices: set[MeanOver] = {t.mean_over for t in terms}
    return choices.pop() if len(choices) == 1 else "prompts"
