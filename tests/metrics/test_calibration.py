"""Calibration of margins: by hand, limits, extreme margins."""

import math

import numpy as np
import pytest

from upo.metrics.calibration import calibration_error, reliability


def test_by_hand() -> None:
    # confidences .6 (right), .6 (wrong), .9 (right): classes [.6,.65) and [.9,.95)
    margins = [math.log(1.5), -math.log(1.5), math.log(9.2)]
    sure = 9.2 / 10.2
    found = reliability(margins)
    assert [(b.n, b.accuracy) for b in found] == [(2, 0.5), (1, 1.0)]
    assert calibration_error(margins) == pytest.approx((2 * abs(0.5 - 0.6) + abs(1 - sure)) / 3)


def test_no_margin_is_a_coin_that_knows_it() -> None:
    assert calibration_error([0.0, 0.0]) == 0.0


def test_outcomes_drawn_from_the_claimed_probabilities_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    strength = rng.normal(0, 2, 20000)
    margins = np.where(rng.random(20000) < 1 / (1 + np.exp(-strength)), strength, -strength)
    assert calibration_error(margins.tolist()) < 0.02
    assert calibration_error((10 * margins).tolist()) > 0.1, "overconfident"


def test_extreme_margins_are_certain() -> None:
    assert calibration_error([1e4, 1e4]) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error([-1e4]) == pytest.approx(1.0)


def test_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no margin"):
        calibration_error([])
