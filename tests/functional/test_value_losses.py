"""Losses of the value head: what V do they lead to, and do they stay finite?"""

import numpy as np
import pytest
import torch

from upo.functional.value_losses import Expectile, Linex


def numerical_optimum(loss, rewards: np.ndarray) -> float:
    """The V with the smallest mean loss: nested grids, no gradient involved."""
    low, high = rewards.min(), rewards.max()
    r = torch.from_numpy(rewards)
    for _ in range(7):
        grid = torch.linspace(low, high, 41, dtype=torch.float64)
        best = int(torch.stack([loss(r - v).mean() for v in grid]).argmin())
        low, high = float(grid[max(0, best - 1)]), float(grid[min(40, best + 1)])
    return (low + high) / 2


@pytest.fixture
def rewards() -> np.ndarray:
    """Skewed, as safety is: most responses near 1, some near 0."""
    return np.random.default_rng(0).beta(2.0, 0.5, 4000)


@pytest.mark.parametrize(
    ("tau", "error", "expected"),
    [(0.7, 2.0, 2.8), (0.7, -2.0, 1.2), (0.9, -1.0, 0.1), (0.3, 0.5, 0.075), (0.7, 0.0, 0.0)],
)
def test_expectile_by_hand(tau, error, expected):
    assert Expectile(tau)(torch.tensor([error])).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("tau", "error", "slope"), [(0.7, 2.0, 2.8), (0.7, -2.0, -1.2), (0.5, 3.0, 3.0)])
def test_expectile_slope_by_hand(tau, error, slope):
    x = torch.tensor([error], requires_grad=True)
    assert torch.autograd.grad(Expectile(tau)(x).sum(), x)[0].item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.7, 0.95])
def test_expectile_leads_to_the_expectile(tau, rewards):
    """The tau-expectile balances tau E(R - V)+ against (1 - tau) E(V - R)+; 0.5 is the mean."""
    v = numerical_optimum(Expectile(tau), rewards)
    above, below = np.maximum(rewards - v, 0).mean(), np.maximum(v - rewards, 0).mean()
    assert tau * above == pytest.approx((1 - tau) * below, rel=1e-4)
    if tau == 0.5:
        assert v == pytest.approx(rewards.mean(), abs=1e-5)


@pytest.mark.parametrize("lam", [0.5, 2.0, 5.0])
def test_linex_leads_to_the_log_mean_exp_and_so_to_a_mean_weight_of_1(lam, rewards):
    v = numerical_optimum(Linex(lam), rewards)
    assert v == pytest.approx(np.log(np.exp(lam * rewards).mean()) / lam, abs=1e-5)
    assert np.exp(lam * (rewards - v)).mean() == pytest.approx(1, abs=1e-4)


def test_linex_by_hand():
    loss = Linex(2.0)(torch.tensor([0.5, -0.5, 0.0], dtype=torch.float64))
    assert loss.tolist() == pytest.approx([np.e - 2, np.exp(-1), 0.0])


@pytest.mark.parametrize("loss", [Expectile(0.7), Expectile(0.3), Linex(5.0), Linex(0.5)])
def test_gradcheck_zero_at_zero_positive_elsewhere(loss):
    errors = torch.tensor([-3.0, -0.4, 0.3, 1.7, 6.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, errors)
    (slope,) = torch.autograd.grad(loss(errors).sum(), errors)
    assert (slope.sign() == errors.sign()).all()
    zero = torch.zeros(1, requires_grad=True)
    assert loss(zero).item() == 0
    assert torch.autograd.grad(loss(zero).sum(), zero)[0].item() == 0
    assert (loss(errors) > 0).all()


@pytest.mark.parametrize("error", [1e4, -1e4, 1e-9, -1e-9])
@pytest.mark.parametrize("loss", [Expectile(0.7), Linex(5.0)])
def test_finite_far_out(loss, error):
    x = torch.tensor([error], requires_grad=True)
    value = loss(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all() and gradient.isfinite().all()
    assert gradient.item() * error >= 0


def test_linex_goes_straight_on_where_exp_would_overflow():
    """Value and slope are continuous at lam u = 20, and the slope no longer grows."""
    loss = Linex(5.0)
    errors = torch.tensor([4 - 1e-9, 4 + 1e-9, 7.0, 100.0], dtype=torch.float64, requires_grad=True)
    values = loss(errors)
    (slope,) = torch.autograd.grad(values.sum(), errors)
    assert values[1].item() == pytest.approx(values[0].item(), rel=1e-7)
    assert slope.tolist() == pytest.approx([5 * np.expm1(20)] * 4, rel=1e-7)
