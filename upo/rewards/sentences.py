"""Short sentences: the part of reading level that no vocabulary list is needed for."""

import re
from collections.abc import Sequence
from typing import ClassVar

from upo.data.example import Prompt
from upo.data.rewards import Reward
from upo.errors import UserError


class ShortSentences(Reward):
    """min(max((hard - w) / (hard - easy), 0), 1), w the mean number of words a sentence.

    Range [0, 1], 1 is easy to read. A sentence ends at one of `.!?` or at the end of the text; a text without a word
    scores 0.
    """

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, easy: float = 4.0, hard: float = 14.0):
        """
        Args:
            easy: words a sentence at which the reward is 1.
            hard: words a sentence at which it is 0.
        """
        if easy >= hard:
            raise UserError(f"ShortSentences: easy={easy} must be below hard={hard}")
        self.easy, self.hard = easy, hard

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [self._value(response) for response in responses]

    def _value(self, text: str) -> float:
        words = [n for sentence in re.split(r"[.!?]+", text) if (n := len(re.findall(r"\w[\w'-]*", sentence)))]
        if not words:
            return 0.0
        return min(max((self.hard - sum(words) / len(words)) / (self.hard - self.easy), 0.0), 1.0)

    def fingerprint(self) -> str:
        return f"ShortSentences 1 easy={self.easy} hard={self.hard}"
