"""Length-controlled win rate: limits, an independent fit, and that length is what it takes out."""

import numpy as np
import pytest

from upo.metrics.length_control import length_controlled


def test_responses_of_equal_length_keep_their_win_rate() -> None:
    wins = [1.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 1.0]
    found = length_controlled(wins, [7.0] * 8, [7.0] * 8)
    assert found.mean == pytest.approx(np.mean(wins), abs=1e-9)
    assert found.low < found.mean < found.high and found.n == 8


def test_no_rate_where_one_side_is_always_longer() -> None:
    rng = np.random.default_rng(0)
    words, others = rng.normal(200, 40, 300), rng.normal(50, 20, 300)
    wins = (rng.random(300) < 0.8).astype(float)
    assert length_controlled(wins.tolist(), words.tolist(), others.tolist()) is None
    assert length_controlled([1.0, 0.0, 1.0, 1.0], [9.0] * 4, [4.0] * 4) is None


def test_agrees_with_a_general_optimiser() -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    words, others = rng.integers(5, 60, 300).astype(float), rng.integers(5, 40, 300).astype(float)
    x = np.tanh((words - others) / (words - others).std())
    wins = np.where(rng.random(300) < 0.2, 0.5, (rng.random(300) < 1 / (1 + np.exp(-0.3 - 1.2 * x))).astype(float))

    def loss(ab: np.ndarray) -> float:
        z = ab[0] + ab[1] * x
        return float((np.logaddexp(0, z) - wins * z).sum() + ab[1] ** 2 / 2)

    a, b = minimize(loss, np.zeros(2), tol=1e-12).x
    assert b > 0.5
    assert length_controlled(wins.tolist(), words.tolist(), others.tolist()).mean == pytest.approx(
        1 / (1 + np.exp(-a)), abs=1e-5
    )


def test_a_win_rate_that_length_alone_bought_falls_to_a_half() -> None:
    rng = np.random.default_rng(1)
    words = rng.normal(50, 10, 800)
    others = rng.normal(40, 10, 800)
    wins = (rng.random(800) < 1 / (1 + np.exp(-3 * np.tanh((words - others) / (words - others).std())))).astype(float)
    found = length_controlled(wins.tolist(), words.tolist(), others.tolist())
    assert wins.mean() > 0.65
    assert found.low < 0.5 < found.high and found.high - found.low < 0.2


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_alike_stays_finite(value: float) -> None:
    found = length_controlled([value] * 5, [1.0, 2.0, 3.0, 4.0, 9.0], [5.0] * 5)
    assert (found.mean, found.low, found.high) == (value, value, value)


def test_a_length_that_separates_wins_from_losses_stays_finite() -> None:
    found = length_controlled([1.0] * 20 + [0.0] * 20, [1e6] * 20 + [1.0] * 20, [5e5] * 40)
    assert 0.3 < found.mean < 0.7
    assert np.isfinite([found.low, found.high]).all()


def test_its_interval_covers() -> None:
    rng = np.random.default_rng(2)
    truth, hits = 1 / (1 + np.exp(-0.4)), 0
    for _ in range(40):
        difference = rng.normal(5, 20, 100)
        wins = (rng.random(100) < 1 / (1 + np.exp(-0.4 - 0.8 * np.tanh(difference / 20)))).astype(float)
        found = length_controlled(wins.tolist(), (100 + difference).tolist(), [100.0] * 100)
        hits += found.low <= truth <= found.high
    assert hits >= 35


def test_uneven_sides_are_an_error() -> None:
    with pytest.raises(ValueError, match="each prompt needs both"):
        length_controlled([1.0], [1.0, 2.0], [1.0, 2.0])
