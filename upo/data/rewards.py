"""What an auxiliary reward is: any function of prompts and responses to floats."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from upo.data.example import Example, Prompt
from upo.errors import UserError


class Reward(ABC):
    """An auxiliary reward; subclasses state range, unit and direction in their docstring.

    Any callable `(prompts, responses) -> floats` with import path will do as well: see
    `upo.rewards.Function`.
    """

    range: ClassVar[tuple[float, float]] = (float("-inf"), float("inf"))
    """Smallest and largest value that the reward can take."""
    higher_is_better: ClassVar[bool | None] = True
    """Direction; None where neither end is better as such (a length)."""
    unfitted: bool = False
    """Whether it still has to see the data set (`fit`) before it can measure."""

    @abstractmethod
    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One float a response; prompts[i] is the prompt of responses[i]."""

    @abstractmethod
    def fingerprint(self) -> str:
        """The cache key: changes whenever values could (class, arguments, library version, model weights)."""

    def fit(  # noqa: B027
        self, train: Sequence[Example], held_out: Sequence[Example], cache_dir: str | Path | None = None
    ) -> None:
        """Learns from the data set what it needs before it measures; most rewards need nothing.

        Args:
            train: the only examples that statistics may come from.
            held_out: known texts of the prompts that are evaluated.
            cache_dir: as in `annotate`.
        """

    def state(self) -> dict[str, float]:
        """What `fit` learned, in plain numbers; goes into checkpoints. Empty where nothing was."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:  # noqa: B027
        """Takes the `state` of a checkpoint instead of fitting anew."""


class VectorReward(Reward):
    """A reward made of named values that are kept beside it: `annotate` writes them as `<name>/<part>`."""

    parts: Mapping[str, Reward] = {}
    """Rewards that these values are; empty where the values have no meaning of their own elsewhere."""
    parts_higher_is_better: ClassVar[bool | None] = True
    """Direction of the values, where they are not rewards themselves."""

    @abstractmethod
    def vector(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        """Part to one float a response."""

    @abstractmethod
    def total(self, values: Mapping[str, float]) -> float:
        """The reward of a response whose parts have these values."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        columns = self.vector(prompts, responses)
        return [self.total(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def fit_all(
    rewards: Mapping[str, Reward],
    train: Sequence[Example],
    held_out: Sequence[Example],
    cache_dir: str | Path | None = None,
) -> None:
    """Fits those rewards that have not seen a data set yet."""
    for reward in rewards.values():
        if reward.unfitted:
            reward.fit(train, held_out, cache_dir)


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
