"""DiscoPOP, the log-ratio modulated loss."""

import math

import pytest
import torch
from cases import Case
from losses import FIRST, SECOND, assert_finite_far_out, assert_gradcheck, draws, golden_pair, gradients, made

from upo.methods.discopop import DiscoPOP, discopop_loss
from upo.methods.dpo import dpo_loss

CASES = {
    DiscoPOP: Case(
        options={"tau": 0.5},  # at the paper's 0.05 the slope at the start points the wrong way
        normaliser_cancels=True,
        defaults={"beta": 0.05, "tau": 0.05},
    )
}


def loss(w, r, beta=0.05, tau=0.05):
    return discopop_loss(w, r, beta=beta, tau=tau)


def slow(z: float, tau: float) -> float:
    """As the paper's code writes it; fails beyond |z| of some hundred."""
    m = 1 / (1 + math.exp(-z / tau))
    return (1 - m) * math.log1p(math.exp(-z)) + m * math.exp(-z)


@pytest.mark.parametrize("fixture", [FIRST, SECOND])
def test_golden_values(fixture):
    assert made(DiscoPOP).loss(*golden_pair(fixture)).item() == pytest.approx(0.704532, abs=5e-7)


def test_by_hand():
    """z = 0: half of log 2 and half of 1; z = 1, tau = 0.5: m = sigmoid(2)."""
    assert loss(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(0.846574, abs=1e-6)
    value = loss(torch.tensor([20.0]), torch.tensor([0.0]), tau=0.5).item()
    assert value == pytest.approx(0.1192029 * 0.3132617 + 0.8807971 * 0.3678794)


@pytest.mark.parametrize("tau", [0.05, 0.9])
def test_against_a_slow_reference(tau):
    w, r = draws(2, 50)
    expected = [slow(0.05 * (a - b), tau) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    assert loss(w, r, tau=tau).tolist() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(loss(w + 9, r + 9, tau=tau), loss(w, r, tau=tau))


def test_exponential_where_right_logistic_where_wrong():
    zero, far = torch.zeros(1, dtype=torch.float64), torch.tensor([60.0], dtype=torch.float64)
    torch.testing.assert_close(loss(far, zero), torch.exp(-0.05 * far))
    torch.testing.assert_close(loss(zero, far), dpo_loss(zero, far, beta=0.05))


def test_the_mixture_carries_a_gradient_and_a_local_minimum():
    """Somewhere below 0 the loss falls towards more wrong: this is the method, and gone if m is detached."""
    z = torch.linspace(-0.5, 0.0, 101, dtype=torch.float64) / 0.05
    (slope,) = gradients(lambda x: loss(x, torch.zeros_like(x)), z)
    assert (slope > 0).any() and slope[0] < 0


@pytest.mark.parametrize(("tau", "downhill"), [(0.05, False), (0.10, False), (0.11, True), (0.5, True)])
def test_the_slope_where_policy_is_reference(tau, downhill):
    """(1 - log 2) / (4 tau) - 3 / 4, by z: at the paper's tau a pair starts on the wrong side of a hill."""
    (slope,) = gradients(lambda x: loss(x, torch.zeros_like(x), beta=1.0, tau=tau), torch.zeros(1))
    assert slope.item() == pytest.approx((1 - math.log(2)) / (4 * tau) - 0.75, abs=1e-6)
    assert (slope < 0).item() == downhill


def test_gradients():
    w, r = draws(2, 9)
    assert_gradcheck(loss, w, r)
    assert_finite_far_out(loss)
    (slope,) = gradients(lambda x: loss(x, torch.zeros(3)), torch.tensor([10.0, 30.0, 80.0]))
    assert (slope < 0).all()


def test_no_nan_where_infinity_meets_zero():
    """exp(-z) sigmoid(z / tau) is inf * 0 for z below -88 in float32."""
    assert loss(torch.tensor([-2000.0]), torch.tensor([0.0])).item() == pytest.approx(100)
