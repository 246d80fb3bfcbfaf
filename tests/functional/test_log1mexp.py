"""log(1 - exp(x)): both branches, the seam, and a gradient that is a number everywhere."""

import math

import pytest
import torch
from losses import assert_gradcheck, gradients

from upo.functional.log1mexp import LIMIT, log1mexp, log_odds

LOG2 = math.log(2)


def test_by_hand():
    """1 - 1/2 and 1 - 3/4."""
    x = torch.tensor([0.5, 0.75], dtype=torch.float64).log()
    assert log1mexp(x).tolist() == pytest.approx([math.log(0.5), math.log(0.25)], rel=1e-14)
    assert log_odds(x).tolist() == pytest.approx([0, math.log(3)], abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_against_math_on_both_sides_of_the_seam(dtype):
    """A naive log(1 - exp(x)) in float32 knows 1e-5 to two digits only."""
    points = [-1e-5, -1e-3, -0.1, -LOG2 + 1e-6, -LOG2 - 1e-6, -1.0, -5.0, -20.0, -80.0]
    x = torch.tensor(points, dtype=dtype)
    expected = [math.log(-math.expm1(a)) if a > -1 else math.log1p(-math.exp(a)) for a in x.tolist()]
    assert log1mexp(x).tolist() == pytest.approx(expected, rel=1e-12 if dtype == torch.float64 else 2e-6)


def test_gradient():
    """-1 / (exp(-x) - 1), on both sides of the seam."""
    x = torch.tensor([-1e-3, -0.3, -0.69, -0.7, -3.0, -30.0], dtype=torch.float64)
    assert_gradcheck(log1mexp, x[1:])
    torch.testing.assert_close(gradients(log1mexp, x)[0], -1 / torch.expm1(-x), rtol=1e-10, atol=0)
    single = gradients(log1mexp, x.float())[0].double()
    torch.testing.assert_close(single, -1 / torch.expm1(-x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("x", [-1e4, -100.0, -1e-7, -1e-9, -1e-30, 0.0, 1e-7, 1e4])
def test_finite_in_value_and_gradient(x):
    """Near 0 one `where` gives a finite value and a NaN gradient; a token's log-prob can round to 0."""
    for function in (log1mexp, log_odds):
        for dtype in (torch.float32, torch.float64):
            point = torch.tensor([x], dtype=dtype)
            assert function(point).isfinite().all()
            assert gradients(function, point)[0].isfinite().all()


def test_near_0_it_is_a_straight_line_that_still_falls():
    x = torch.tensor([2 * LIMIT, LIMIT, LIMIT / 2, 0.0], dtype=torch.float64)
    value, (slope,) = log1mexp(x), gradients(log1mexp, x)
    assert (value.diff() < 0).all() and (slope < 0).all()
    assert value[1].item() == pytest.approx(math.log(-math.expm1(LIMIT)), rel=1e-12)
    assert slope[1:].tolist() == pytest.approx([-1 / math.expm1(-LIMIT)] * 3, rel=1e-9)
    assert (value[1] - value[3]).item() == pytest.approx(1, rel=1e-5)
