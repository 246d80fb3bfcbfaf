"""What losses are made of."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor

MeanOver = Literal["prompts", "responses", "tokens"]


@frozen(eq=False)
class LossTerm:
    """One addend of the loss, unreduced."""

    values: Tensor
    """One value per prompt (a pair is one), response, or response token of the micro-batch."""
    mean_over: MeanOver
    """What the values are averaged over, in the GLOBAL step."""
    weight: float = field(default=1.0, kw_only=True)
    """Factor in the total loss; `train/loss/<term>` is logged without it."""


def total(terms: Iterable[LossTerm], counts: Mapping[str, int]) -> Tensor:
    """A micro-batch's addend to the loss of a step: the sum of all terms, each over its own number in the step.

    Args:
        counts: prompts, responses and tokens of the GLOBAL step.
    """
    return torch.stack([t.weight * t.values.sum() / counts[t.mean_over] for t in terms]).sum()


def common(terms: Iterable[LossTerm]) -> MeanOver:
    """What all terms are averaged over, prompts where they differ: it weighs the steps in the mean loss of several."""
    pers: set[MeanOver] = {t.mean_over for t in terms}
    return pers.pop() if len(pers) == 1 else "prompts"
