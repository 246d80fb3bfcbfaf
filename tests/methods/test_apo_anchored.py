"""APO-zero and APO-down."""

import math

import pytest
import torch
from cases import Case

from upo.methods.apo_anchored import APODown, APOZero, apo_down_loss, apo_zero_loss
from upo.models.logps import ResponseLogps

CASES = {
    APODown: Case(normaliser_cancels=False, defaults={"beta": 0.1}),
    APOZero: Case(normaliser_cancels=False, defaults={"beta": 0.1}),
}

BETA = 0.1
BOTH = [apo_zero_loss, apo_down_loss]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def slow(loss, r_w: float, r_l: float, beta: float) -> float:
    """As the paper writes them, with the differences from 1."""
    if loss is apo_zero_loss:
        return 1 - sigmoid(beta * r_w) + sigmoid(beta * r_l)
    return sigmoid(beta * r_w) + 1 - sigmoid(beta * (r_w - r_l))


def ratios(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(20 * torch.randn(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


@pytest.mark.parametrize(
    ("loss", "ratio", "golden"),
    [
        (apo_zero_loss, (2.0, -5.0), 0.827707),
        (apo_zero_loss, (-3.0, -10.0), 0.843384),
        (apo_down_loss, (2.0, -5.0), 0.881646),
        (apo_down_loss, (-3.0, -10.0), 0.757370),
    ],
)
def test_golden_values(loss, ratio, golden):
    w, r = torch.tensor(ratio, dtype=torch.float64)[:, None]
    assert loss(w, r, beta=BETA).item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """beta r_w = 1, beta r_l = -2: 1 - .7310586 + .1192029, and .7310586 + 1 - sigmoid(3)."""
    w, r = torch.tensor([2.0]), torch.tensor([-4.0])
    assert apo_zero_loss(w, r, beta=0.5).item() == pytest.approx(0.3881443)
    assert apo_down_loss(w, r, beta=0.5).item() == pytest.approx(0.7784845)


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
@pytest.mark.parametrize("loss", BOTH)
def test_against_a_slow_reference_and_between_0_and_2(loss, beta):
    w, r = ratios()
    value = loss(w, r, beta=beta)
    expected = [slow(loss, a, b, beta) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    assert value.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert (value >= 0).all() and (value <= 2).all()


@pytest.mark.parametrize(("loss", "slopes"), [(apo_zero_loss, (-1, 1)), (apo_down_loss, (0, 1))])
def test_1_and_exact_gradients_where_policy_is_reference(loss, slopes):
    w, r = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    value = loss(w, r, beta=BETA)
    assert value.tolist() == [1.0, 1.0]
    for gradient, slope in zip(torch.autograd.grad(value.sum(), (w, r)), slopes, strict=True):
        assert gradient.tolist() == pytest.approx([slope * BETA / 4] * 2, abs=1e-9)


@pytest.mark.parametrize("loss", BOTH)
def test_anchored_a_shift_of_both_ratios_matters(loss):
    w, r = ratios()
    assert not torch.allclose(loss(w + 5, r + 5, beta=BETA), loss(w, r, beta=BETA), atol=1e-3)


@pytest.mark.parametrize("loss", BOTH)
def test_gradcheck_and_signs(loss):
    """Zero: chosen up, rejected down everywhere. Down: rejected down; chosen down once the margin is won."""
    w, r = (x[:9].clone().requires_grad_() for x in ratios())
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, beta=BETA), (w, r))
    by_w, by_r = torch.autograd.grad(loss(w, r, beta=BETA).sum(), (w, r))
    assert (by_r > 0).all()
    if loss is apo_zero_loss:
        assert (by_w < 0).all()
    else:
        won = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        value = loss(won, torch.tensor([-60.0], dtype=torch.float64), beta=BETA)
        assert torch.autograd.grad(value.sum(), won)[0].item() > 0


@pytest.mark.parametrize("far", [1e4, -1e4, -1e-9])
@pytest.mark.parametrize("loss", BOTH)
def test_finite_far_out(loss, far):
    w, r = torch.tensor([far, 0.0], requires_grad=True), torch.tensor([0.0, far], requires_grad=True)
    value = loss(w, r, beta=BETA)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), (w, r)))
    assert value.tolist() == pytest.approx([slow(loss, far, 0, BETA), slow(loss, 0, far, BETA)], abs=1e-6)


@pytest.mark.parametrize("loss", BOTH)
def test_a_response_of_one_token_with_log_prob_near_0(loss):
    logps = torch.tensor([-1e-9, -1e4], requires_grad=True)
    one = ResponseLogps(logps, torch.ones(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), torch.zeros(2))
    value = loss(one[0::2].logratio, one[1::2].logratio, beta=BETA)
    assert value.isfinite().all() and torch.autograd.grad(value.sum(), logps)[0].isfinite().all()
