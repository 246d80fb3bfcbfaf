"""How positive a response sounds (Hutto and Gilbert 2014, VADER)."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import ClassVar

from upo.data.example import Prompt
from upo.data.rewards import Reward


class Sentiment(Reward):
    """VADER's compound score of the response, scaled to (1 + compound) / 2.

    Range [0, 1], larger is more positive; 0.5 is neutral, as is a text without a word. A lexicon with rules
    for English, no model: long texts saturate near 0 or 1.
    """

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self):
        self._analyzer = None

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        if self._analyzer is None:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

            self._analyzer = SentimentIntensityAnalyzer()
        return [(1 + self._analyzer.polarity_scores(y)["compound"]) / 2 for y in responses]

    def fingerprint(self) -> str:
        return f"Sentiment 1 vaderSentiment={version('vaderSentiment')}"
