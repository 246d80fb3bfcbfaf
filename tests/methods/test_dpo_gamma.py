"""DPO-gamma."""

import math

import pytest
import torch
from cases import Case
from losses import (
    FIRST,
    assert_finite_far_out,
    assert_gradcheck,
    draws,
    golden_pair,
    gradients,
    logps_of,
    made,
    minus_log_sigmoid,
)  # fmt: skip

from upo.methods.dpo import dpo_loss
from upo.methods.dpo_gamma import DPOGamma, dpo_gamma_loss

CASES = {DPOGamma: Case(normaliser_cancels=True, defaults={"beta": 0.1, "gamma": 0.5})}


def loss(w, r, ref_w, ref_r, gamma=0.5):
    return dpo_gamma_loss(w, r, ref_w, ref_r, beta=0.1, gamma=gamma)


@pytest.mark.parametrize(("gamma", "margin"), [(1.0, 0.7), (0.5, 1.1), (0.0, 1.5)])
def test_by_hand(gamma, margin):
    """0.1 (15 - gamma 8)."""
    value = made(DPOGamma, gamma=gamma).loss(*golden_pair(FIRST)).item()
    assert value == pytest.approx(math.log1p(math.exp(-margin)))


def test_against_a_slow_reference():
    inputs = draws(4, 50)
    expected = [minus_log_sigmoid(0.1 * ((a - b) - 0.5 * (c - d))) for a, b, c, d in inputs.T.tolist()]
    assert loss(*inputs).tolist() == pytest.approx(expected, rel=1e-12)


def test_limits_and_invariance():
    w, r, ref_w, ref_r = draws(4, 50)
    torch.testing.assert_close(loss(w, r, ref_w, ref_r, 1.0), dpo_loss(w - ref_w, r - ref_r, beta=0.1))
    torch.testing.assert_close(loss(w, r, ref_w, ref_r, 0.0), dpo_loss(w, r, beta=0.1))
    torch.testing.assert_close(loss(w + 3, r + 3, ref_w - 5, ref_r - 5), loss(w, r, ref_w, ref_r))


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_the_loss_that_means_a_right_order(gamma):
    """-log sigmoid(beta gamma c) with c = ref_l - ref_w."""
    w, r, ref_w, ref_r = draws(4, 200)
    threshold = -torch.nn.functional.logsigmoid(0.1 * gamma * (ref_r - ref_w))
    assert torch.equal(loss(w, r, ref_w, ref_r, gamma) <= threshold, w >= r)


def test_gradients():
    w, r, ref_w, ref_r = draws(4, 9)
    assert_gradcheck(lambda w, r: loss(w, r, ref_w, ref_r), w, r)
    down, up = gradients(lambda w, r: loss(w, r, ref_w, ref_r), w, r)
    assert (down < 0).all()
    torch.testing.assert_close(up, -down)
    for ref_w, ref_r in ((0.0, 0.0), (1e4, -1e4), (-1e4, 1e4)):
        assert_finite_far_out(lambda w, r, a=ref_w, b=ref_r: loss(w, r, torch.full_like(w, a), torch.full_like(r, b)))


def test_the_reward_weakens_the_reference():
    assert made(DPOGamma, gamma=0.5).reward(logps_of([-10.0], reference=[-30.0])).item() == pytest.approx(0.5)
