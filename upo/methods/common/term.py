"""What losses are made of."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor

Per = Literal["prompts", "responses", "tokens"]


@frozen(eq=False)
class Term:
    """One addend of the loss, unreduced."""

    values: Tensor
    """One value a prompt (a pair is one), response, or response token of the micro-batch."""
    per: Per
    """What the values are averaged over, in the GLOBAL step."""
    scale: float = field(default=1.0, kw_only=True)
    """Factor in the total loss; `train/loss/<term>` is logged without it."""


def total(terms: Iterable[Term], counts: Mapping[str, int]) -> Tensor:
    """A micro-batch's addend to the loss of a step: the sum of all terms, each over its own number in the step.

    Args:
        counts: prompts, responses and tokens of the GLOBAL step.
    """
    return torch.stack([t.scale * t.values.sum() / counts[t.per] for t in terms]).sum()


def common(terms: Iterable[Term]) -> Per:
    """What all terms are averaged over, prompts where they differ: it weighs the steps in the mean loss of several."""
    pers: set[Per] = {t.per for t in terms}
    return pers.pop() if len(pers) == 1 else "prompts"
