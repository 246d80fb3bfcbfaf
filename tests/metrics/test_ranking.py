"""Idealised ranking accuracy: by hand, its limits in beta, and against the optimum written out."""

import math

import pytest

from upo.metrics.ranking import idealised_ranking


def test_by_hand() -> None:
    # a reference 8 nats on the wrong side; sure raters pull by log(999) / beta = 6.907 / beta
    assert idealised_ranking([-8.0], beta=1.0) == [0.0]
    assert idealised_ranking([-8.0], beta=0.5) == [1.0]
    assert idealised_ranking([8.0], beta=10.0) == [1.0]
    assert idealised_ranking([-0.1, 0.1], [0.2, 0.2], beta=1.0) == [0.0, 0.0], "raters that prefer the other one"


def test_a_strong_pull_leaves_the_references_ranking_and_a_weak_one_the_raters() -> None:
    margins, shares = [-50.0, -0.01, 0.01, 50.0], [0.9] * 4
    assert idealised_ranking(margins, shares, beta=1e6) == [0.0, 0.0, 1.0, 1.0]
    assert idealised_ranking(margins, shares, beta=1e-6) == [1.0] * 4


def test_is_the_ranking_of_the_optimum_written_out() -> None:
    pairs = [(0.02, 0.3, 0.8), (0.3, 0.02, 0.6), (0.1, 0.2, 0.55), (0.01, 0.4, 0.99)]
    for beta in (0.1, 0.5, 1.0, 5.0):
        slow = []
        for w, other, alpha in pairs:  # pi* ~ ref exp(r / beta), Bradley-Terry reward gap = logit(alpha)
            slow.append(float(w * (alpha / (1 - alpha)) ** (1 / beta) > other))
        margins = [math.log(w / other) for w, other, _ in pairs]
        assert idealised_ranking(margins, [a for *_, a in pairs], beta=beta) == slow


def test_bad_beta() -> None:
    with pytest.raises(ValueError, match="above 0"):
        idealised_ranking([1.0], beta=0.0)
