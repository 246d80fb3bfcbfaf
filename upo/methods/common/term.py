"""What losses are made of."""

from typing import Literal

from attrs import field, frozen
from torch import Tensor


@frozen(eq=False)
class Term:
    """One addend of the loss, unreduced."""

    values: Tensor
    """One value a prompt (a pair is one), response, or response token of the micro-batch."""
    per: Literal["prompts", "responses", "tokens"]
    """What the values are averaged over, in the GLOBAL step."""
    scale: float = field(default=1.0, kw_only=True)
    """Factor in the total loss; `train/loss/<term>` is logged without it."""
