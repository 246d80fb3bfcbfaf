"""Key phrases of a text by RAKE (Rose et al., 2010), and copies of the text from which the most important are gone."""

import math
import re
from collections import Counter
from functools import cache


@cache
def stop_words() -> frozenset[str]:
    """English words that separate phrases."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return ENGLISH_STOP_WORDS


def key_phrases(text: str) -> list[tuple[int, int]]:
    """Where phrases begin and end, the most important first; equal ones in the order of the text.

    A phrase is a longest run of words without stop word or punctuation; it weighs the sum of its words' degree (words
    in phrases with them) over frequency.
    """
    runs: list[list[re.Match[str]]] = [[]]
    for word in re.finditer(r"\w+(?:['\u2019-]\w+)*|[^\w\s]", text):
        if word[0].lower() in stop_words() or not re.match(r"\w", word[0]):
            runs.append([])
        else:
            runs[-1].append(word)
    runs = [run for run in runs if run]
    frequency, degree = Counter[str](), Counter[str]()
    for run in runs:
        for word in run:
            frequency[word[0].lower()] += 1
            degree[word[0].lower()] += len(run)

    def weight(run: list[re.Match[str]]) -> float:
        return sum(degree[w[0].lower()] / frequency[w[0].lower()] for w in run)

    return [(run[0].start(), run[-1].end()) for run in sorted(runs, key=weight, reverse=True)]


def without_key_phrases(text: str, share: float) -> str:
    """The text without that share of its key phrases (rounded up), the most important ones; spaces are closed up."""
    phrases = key_phrases(text)
    for start, end in sorted(phrases[: math.ceil(share * len(phrases))], reverse=True):
        text = text[:start] + text[end:]
    return re.sub(r"[ \t]{2,}", " ", text).strip()
