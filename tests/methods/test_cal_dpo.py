"""Cal-DPO: a contrast without beta and targets with it, in the paper's weight and the code's."""

import math

import pytest
import torch
from cases import Case
from losses import (
    FIRST,
    SECOND,
    assert_finite_far_out,
    assert_gradcheck,
    draws,
    golden_rows,
    gradients,
    logps_of,
    made,
    total,
)
from losses import minus_log_sigmoid as ls

from upo.methods.cal_dpo import CalDPO, calibration_loss

CASES = {
    CalDPO: Case(
        metrics={"loss/calibration", "loss/preference"},
        normaliser_cancels=False,
        defaults={"beta": 0.002, "calibration_weight": 1.0},
    ),
}


@pytest.mark.parametrize(
    ("fixture", "paper", "code"),
    [(FIRST, 4329.000911, 2164.500911), (SECOND, 4409.000911, 2204.500911)],
)
def test_golden_values(fixture, paper, code):
    rows = golden_rows(fixture)
    assert total(made(CalDPO, beta=0.01), rows).item() == pytest.approx(paper, abs=1e-6)
    assert total(made(CalDPO, beta=0.01, calibration_weight=0.5), rows).item() == pytest.approx(code, abs=1e-6)


def test_by_hand():
    """r = 3, 2; targets +-2: -log sigmoid(1) + 1 + 16."""
    rows = logps_of([-7.0, -8.0], reference=[-10.0, -10.0], lengths=[3, 4], prompts=[0, 0])
    assert total(made(CalDPO, beta=0.25), rows).item() == pytest.approx(0.3132617 + 17)
    assert made(CalDPO, beta=0.25).reward(rows).tolist() == [3, 2], "beta is in the targets only"


def test_against_a_slow_reference():
    logps, reference = draws(2, 40, scale=5.0)
    rows = logps_of(logps, reference=reference, prompts=[i // 2 for i in range(40)])
    r = (logps - reference).tolist()
    expected = [ls(a - b) + 0.7 * ((a - 5) ** 2 + (b + 5) ** 2) for a, b in zip(r[0::2], r[1::2], strict=True)]
    assert total(made(CalDPO, beta=0.1, calibration_weight=0.7), rows).tolist() == pytest.approx(expected, rel=1e-10)


def test_terms_at_the_start_and_at_the_targets():
    start = logps_of([-6.0, -8.0], reference=[-6.0, -8.0], prompts=[0, 0])
    assert total(made(CalDPO, beta=0.1), start).item() == pytest.approx(math.log(2) + 50)
    assert total(made(CalDPO, calibration_weight=0.0), start).item() == pytest.approx(math.log(2))
    assert calibration_loss(torch.tensor([5.0]), torch.tensor([-5.0]), beta=0.1).item() == 0


def test_pointwise():
    """A constant on both log-ratios changes the loss, unlike DPO's."""
    w, r = draws(2, 9)
    assert not torch.allclose(calibration_loss(w + 7, r + 7, beta=0.1), calibration_loss(w, r, beta=0.1))


def test_gradients():
    def loss(w, r):
        return calibration_loss(w, r, beta=0.1)

    assert_gradcheck(loss, *draws(2, 6))
    down, up = gradients(loss, torch.tensor([0.0, 5.0, 6.0]), torch.tensor([0.0, -5.0, -6.0]))
    assert down.tolist() == [-10, 0, 2] and up.tolist() == [10, 0, -2]
    assert_finite_far_out(loss)
