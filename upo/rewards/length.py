"""How long a response is."""

from collections.abc import Sequence
from typing import ClassVar

from upo.data.example import Prompt
from upo.data.rewards import Reward


class Words(Reward):
    """Number of words of the response, separated by white space.

    Unit: words, 0 and up. No direction of its own: report it beside other rewards, for many of them reward short texts,
    or give it a weight of either sign.
    """

    range: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    higher_is_better: ClassVar[bool | None] = None

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [float(len(y.split())) for y in responses]

    def fingerprint(self) -> str:
        return "Words 1"
