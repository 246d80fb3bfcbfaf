"""What a judge is: it reads a prompt and two responses and says which one is better."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from attrs import frozen

from upo.data.example import Prompt


@frozen
class Verdict:
    """The outcome for one prompt, seen from the first of two responses."""

    win: float | None
    """1 for the first response, 0 for the second, 0.5 for a tie; null where no answer could be read."""
    flipped: bool = False
    """Whether the answer changed with the order in which the responses were shown."""


class Judge(ABC):
    """Compares two responses; subclasses say in their docstring how they ask."""

    @abstractmethod
    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
        """One verdict a prompt."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes whenever verdicts could: class, arguments, instruction, model."""
