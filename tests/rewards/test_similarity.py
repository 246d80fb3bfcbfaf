"""Similarity: ROUGE-L's F1 on words, to a text or to the data's preferred response."""

import random

import pytest

from upo.data.example import Example, Response
from upo.errors import UserError
from upo.rewards import Similarity, annotate


def lcs(a: list[str], b: list[str]) -> int:
    """Longest common subsequence, by its recursion."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_by_hand():
    texts = ["The cat sat.", "the cat sat", "sat cat the", "The dog.", "Nobody knows", ""]
    # against the 4 tokens "the cat sat .": 2 * 4 / 8, 2 * 3 / 7, 2 * 1 / 7, 2 * 2 / 7, 0, 0
    assert Similarity("the CAT sat.")([""] * 6, texts) == pytest.approx([1, 6 / 7, 2 / 7, 4 / 7, 0, 0])


def test_against_the_recursion():
    rng = random.Random(0)
    for _ in range(20):
        a, b = ([f"w{rng.randrange(12)}" for _ in range(rng.randrange(1, 40))] for _ in range(2))
        expected = 2 * lcs(a, b) / (len(a) + len(b))
        assert Similarity(" ".join(a))([""], [" ".join(b)])[0] == pytest.approx(expected)


TRAIN = [
    Example("p", (Response("good one", rank=0), Response("bad", rank=1))),
    Example("p", (Response("worse", score=1.0), Response("fine words", score=2.0))),
    Example("l", (Response("yes", desirable=True), Response("no", desirable=False))),
]
HELD_OUT = [Example("h", (Response("kept", rank=0), Response("lost", rank=1)))]


def test_to_the_preferred_response():
    reward = Similarity()
    assert reward.unfitted
    reward.fit(TRAIN, HELD_OUT)
    assert not reward.unfitted
    prompts = ["p", "p", "p", "l", "h", "h"]
    assert reward(prompts, ["good one", "fine", "worse", "no", "kept", "lost"]) == pytest.approx([1, 2 / 3, 0, 0, 1, 0])
    (done,) = annotate(HELD_OUT, {"rouge": reward})
    assert [r.rewards["rouge"] for r in done.responses] == [1, 0]
    other = Similarity()
    other.fit(TRAIN, [])
    assert other.fingerprint() != reward.fingerprint() != Similarity("x").fingerprint()


def test_without_a_preferred_response():
    with pytest.raises(UserError, match="no preferred response to 'p'; give a `text`"):
        Similarity()(["p"], ["x"])
    reward = Similarity()
    reward.fit([Example("p", (Response("x"),))], [])
    with pytest.raises(UserError, match="no preferred response"):
        reward(["p"], ["x"])
