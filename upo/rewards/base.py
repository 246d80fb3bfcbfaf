"""What an auxiliary reward is: any function of prompts and responses to floats."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from upo.data.example import Prompt
from upo.errors import UserError


class Reward(ABC):
    """An auxiliary reward; subclasses state range, unit and direction in their docstring.

    Any callable `(prompts, responses) -> floats` with import path will do as well: see
    `upo.rewards.Function`.
    """

    range: ClassVar[tuple[float, float]] = (float("-inf"), float("inf"))
    """Smallest and largest value that the reward can take."""

    @abstractmethod
    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One float a response; prompts[i] is the prompt of responses[i]."""

    @abstractmethod
    def fingerprint(self) -> str:
        """The cache key: changes whenever values could (class, arguments, library version, model weights)."""


def checked(name: str, values: object, count: int) -> list[float]:
    """`values` of the reward `name` as `count` finite floats.

    Raises:
        UserError: wrong number of values, or one that is no finite number.
    """
    try:
        values = list(values)
    except TypeError:
        raise UserError(f"reward `{name}` gave {type(values).__name__}: return one float a response") from None
    if len(values) != count:
        raise UserError(f"reward `{name}` gave {len(values)} values for {count} responses: return one float a response")
    floats = []
    for index, value in enumerate(values):
        try:
            number = float("nan") if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not math.isfinite(number):
            raise UserError(f"reward `{name}` gave {value!r} for response {index} of {count}: return finite numbers")
        floats.append(number)
    return floats
