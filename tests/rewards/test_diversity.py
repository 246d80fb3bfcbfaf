"""Lexical diversity and repetition: by hand, and against slow definitions."""

import random

import pytest

from upo.errors import UserError
from upo.rewards import LexicalDiversity, Repetition


def score(reward, *texts):
    return reward([""] * len(texts), texts)


def test_mtld_by_hand():
    people = "Of the people, by the people, for the people."  # the example of McCarthy and Jarvis
    # "a b a" has 2 of 3 distinct: a run ends there, two runs in six words.
    # "a b c a": no run ends at 3/4, but (1 - .75) / (1 - .72) of one has passed.
    # people: forward a run ends at "people" (4 of 6), then "for the people" repeats nothing: 9 / 1; backward it ends
    # at the fifth word (3 of 5), "by people the of" repeats nothing: 9 / 1.
    values = score(LexicalDiversity(), "a b a b a b", "a b c a", people, "One, two - three!", "", "...")
    assert values == pytest.approx([3.0, 4 / (0.25 / 0.28), 9.0, 3.0, 0.0, 0.0])


def slow_mtld(text: list[str], threshold: float) -> float:
    """Cuts the text at each shortest prefix whose share of distinct words is below the threshold."""
    runs, rest = 0.0, text
    while rest:
        shares = [len(set(rest[:n])) / n for n in range(1, len(rest) + 1)]
        short = [n for n, share in enumerate(shares, 1) if share < threshold]
        runs += 1 if short else (1 - shares[-1]) / (1 - threshold)
        rest = rest[short[0] :] if short else []
    return len(text) / runs if runs else len(text)


@pytest.mark.parametrize("vocabulary", [2, 9, 60, 5000])
def test_mtld_is_the_mean_of_both_directions(vocabulary):
    rng = random.Random(vocabulary)
    for threshold in (0.6, 0.72):
        text = [f"w{rng.randrange(vocabulary)}" for _ in range(rng.randrange(30, 300))]
        expected = (slow_mtld(text, threshold) + slow_mtld(text[::-1], threshold)) / 2
        assert score(LexicalDiversity(threshold), " ".join(text))[0] == pytest.approx(expected)


def test_prose_is_more_varied_than_a_loop(shared):
    book = (shared / "data/text/childrens_books.txt").read_text(encoding="utf-8")[20_000:24_000]
    (prose, loop) = score(LexicalDiversity(), book, book[:120] * 30)
    assert 30 < prose < 200 and loop < 0.7 * prose


def test_repetition_by_hand():
    # 4-grams of "a b c d a b c d": abcd bcda cdab dabc abcd: one of five repeats; bigrams: 3 of 7 repeat
    assert score(Repetition(), "a b c d A b c d", "a b c", "") == pytest.approx([1 / 5, 0, 0])
    assert score(Repetition(2), "a b c d a b c d") == pytest.approx([3 / 7])
    assert score(Repetition(1), "no no no no") == [0.75]
    assert Repetition.higher_is_better is False


def test_mistakes():
    with pytest.raises(UserError, match="threshold=1"):
        LexicalDiversity(1.0)
    with pytest.raises(UserError, match="n=0"):
        Repetition(0)
