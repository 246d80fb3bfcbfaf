"""Health of generated text: variety, repetition, length. Collapse shows here before any reward tells."""

import re
from collections.abc import Sequence

TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
"""A word, with its apostrophes, or a punctuation mark."""


def words(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return TOKEN.findall(text.lower())


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of all texts together, divided by their number (Li et al. 2016), in [0, 1].

    It falls with the amount of text: compare equal numbers of texts of similar length. 0 where there is no n-gram.
    """
    grams = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(text: str, n: int = 4) -> float:
    """Share of a text's n-grams that stood in it before (Welleck et al. 2020, seq-rep-n), in [0, 1)."""
    grams = ngrams(words(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n neighbours."""
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
