"""Auxiliary rewards: objectives that no preference label covers. `python -m upo.rewards` lists them."""

from upo.data.annotate import annotate
from upo.data.rewards import Reward, VectorReward
from upo.rewards.diversity import LexicalDiversity, Repetition
from upo.rewards.format import Script, ValidJSON
from upo.rewards.function import Function
from upo.rewards.length import Words
from upo.rewards.mixture import Mixture
from upo.rewards.pattern import Pattern
from upo.rewards.readability import Grade, Readability
from upo.rewards.reward_model import HuggingFaceReward
from upo.rewards.safety import SafetyClassifier, WordListSafety
from upo.rewards.sentences import ShortSentences
from upo.rewards.sentiment import Sentiment
from upo.rewards.similarity import Similarity

__all__ = [
    "Function",
    "Grade",
    "HuggingFaceReward",
    "LexicalDiversity",
    "Mixture",
    "Pattern",
    "Readability",
    "Repetition",
    "Reward",
    "SafetyClassifier",
    "Script",
    "Sentiment",
    "ShortSentences",
    "Similarity",
    "ValidJSON",
    "VectorReward",
    "WordListSafety",
    "Words",
    "annotate",
]
