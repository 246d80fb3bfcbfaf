"""Variety and repetition of texts, by hand."""

import pytest

from upo.metrics.text import distinct_n, ngrams, repetition, words


def test_words_are_words_and_marks():
    assert words("Don't stop, Lily!") == ["don't", "stop", ",", "lily", "!"]


def test_distinct_counts_over_all_texts():
    assert distinct_n(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct_n(["a b a", "a b"], 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct_n(["", "x"], 2) == 0.0


def test_repetition_of_a_loop_and_of_prose():
    assert repetition("the cat sat down") == 0.0
    assert repetition("a b " * 10) == pytest.approx(1 - 2 / 17)
    assert repetition("one two") == 0.0


def test_ngrams_do_not_cross_the_end():
    assert ngrams(list("abc"), 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []
