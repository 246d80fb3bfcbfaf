"""Auxiliary rewards: objectives that no preference label covers. `python -m upo.rewards` lists them."""

from upo.rewards.annotate import annotate
from upo.rewards.base import Reward
from upo.rewards.function import Function
from upo.rewards.length import Words
from upo.rewards.pattern import Pattern
from upo.rewards.readability import Grade, Readability
from upo.rewards.safety import SafetyClassifier, WordListSafety
from upo.rewards.sentences import ShortSentences
from upo.rewards.sentiment import Sentiment

__all__ = [
    "Function",
    "Grade",
    "Pattern",
    "Readability",
    "Reward",
    "SafetyClassifier",
    "Sentiment",
    "ShortSentences",
    "WordListSafety",
    "Words",
    "annotate",
]
