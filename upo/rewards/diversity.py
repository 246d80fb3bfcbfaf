"""How varied the words of a response are (McCarthy and Jarvis 2010), and how much of it repeats itself.

MTLD is written out here because no library fits: lexicalrichness has had no release since August 2023 and brings
TextBlob and NLTK along for these lines.
"""

from collections.abc import Sequence
from typing import ClassVar

from upo.data.example import Prompt
from upo.data.rewards import Reward
from upo.errors import UserError


class LexicalDiversity(Reward):
    """MTLD: the mean number of words for which the share of distinct words stays above a threshold.

    Unit: words, 0 and up, larger is more varied; 70 to 120 is usual for edited prose. The mean of a pass forward and
    one backward; case and punctuation do not count. Below about 50 words it says little: a text that repeats nothing
    has its own length. Put it into a `Mixture` with `normalize` before it meets rewards in [0, 1].
    """

    range: ClassVar[tuple[float, float]] = (0.0, float("inf"))

    def __init__(self, threshold: float = 0.72):
        """
        Args:
            threshold: share of distinct words at which a run ends, in (0, 1); the authors' 0.72, useful from .66
                to .75.
        """
        if not 0 < threshold < 1:
            raise UserError(f"LexicalDiversity: threshold={threshold} must lie between 0 and 1")
        self.threshold = threshold

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        from upo.metrics.text import words

        return [self._value([w for w in words(y) if w[0].isalnum()]) for y in responses]

    def _value(self, text: list[str]) -> float:
        return (self._mean_run(text) + self._mean_run(text[::-1])) / 2 if text else 0.0

    def _mean_run(self, text: list[str]) -> float:
        runs, seen, length = 0.0, set(), 0
        for word in text:
            seen.add(word)
            length += 1
            if len(seen) / length < self.threshold:
                runs, seen, length = runs + 1, set(), 0
        if length:  # the rest is the part of a run by which its share has fallen
            runs += (1 - len(seen) / length) / (1 - self.threshold)
        return len(text) / runs if runs else float(len(text))

    def fingerprint(self) -> str:
        return f"LexicalDiversity 1 threshold={self.threshold}"


class Repetition(Reward):
    """Share of the response's n-grams that stood in it before (Welleck et al. 2020, seq-rep-n).

    Range [0, 1), LOWER is better: give it a negative weight. Case is ignored; a text shorter than n words and
    punctuation marks has 0.
    """

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool | None] = False

    def __init__(self, n: int = 4):
        """
        Args:
            n: words and punctuation marks in a row that count as a repetition, 1 and up.
        """
        if n < 1:
            raise UserError(f"Repetition: n={n} must be at least 1")
        self.n = n

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        from upo.metrics.text import repetition

        return [repetition(y, self.n) for y in responses]

    def fingerprint(self) -> str:
        return f"Repetition 1 n={self.n}"
