"""What a judge is: it reads a prompt and two responses and says which one is better."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import frozen

from upo.data.example import Prompt

CHUNK = 64
"""Prompts that a judge without a way of its own is given at a time."""


@frozen
class Verdict:
    """The outcome for one prompt, seen from the first of two responses."""

    win: float | None
    """1 for the first response, 0 for the second, 0.5 for a tie; null where there is none."""
    flipped: bool = False
    """Whether the answer changed with the order in which the responses were shown."""
    first_place: float | None = None
    """How often the answers in both orders named the response that was shown first, a tie as half; null where there
    were not two answers that could be read."""
    unjudged: str | None = None
    """Why there is no outcome, where not even an answer came; null where one came, whether it could be read or not."""
    again: bool = False
    """Whether the same question may be answered another time, so that this verdict is not worth keeping."""


class Judge(ABC):
    """Compares two responses; subclasses say in their docstring how they ask."""

    @abstractmethod
    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        """One verdict a prompt."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes whenever verdicts could: class, arguments, instruction, model."""

    def each(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> Iterator[tuple[int, Verdict]]:
        """The verdicts as they come, in any order, each with its prompt's place."""
        for start in range(0, len(prompts), CHUNK):
            part = slice(start, start + CHUNK)
            yield from enumerate(self(prompts[part], first[part], second[part]), start)

    def notice(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> str | None:
        """What to say before it is asked about all of these; null: nothing.

        Raises:
            UserError: they are more than it may be asked about.
        """
        return None

    @property
    def kept_in(self) -> Path | None:
        """File that keeps verdicts for good; null: until the evaluation that asked for them is finished."""
        return None
