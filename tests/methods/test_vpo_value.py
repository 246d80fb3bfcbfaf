"""VPO, offline: DPO and the value of the calibration responses."""

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
    golden_pair,
    gradients,
    logps_of,
    made,
    minus_log_sigmoid,
)

from upo.methods.dpo import dpo_loss
from upo.methods.rpo_regularized import RegularizedPO
from upo.methods.vpo_value import VPO, vpo_loss

CASES = {
    # its second term knows no reference, and is added to a likelihood as RegularizedPO's is
    VPO: Case(normaliser_cancels=True, log_odds_at={"alpha": 0.0}, defaults={"beta": 0.1, "alpha": 0.01}),
}

BETA, ALPHA = 0.1, 0.2


@pytest.mark.parametrize(("fixture", "expected"), [(FIRST, 0.403186 - 0.04), (SECOND, 0.403186 + 0.06)])
def test_golden_fixtures(fixture, expected):
    """DPO's golden value minus alpha beta r_w with r_w = 2 and -3: unlike DPO it knows where a pair stands."""
    assert made(VPO, beta=BETA, alpha=ALPHA).loss(*golden_pair(fixture)).item() == pytest.approx(expected, abs=5e-7)


def test_by_hand():
    """z = 0.5 (4 - 2) = 1, alpha beta r_cal = 0.1 * 0.5 * 3."""
    w, r, c = torch.tensor([[4.0], [2.0], [3.0]])
    assert vpo_loss(w, r, c, beta=0.5, alpha=0.1).item() == pytest.approx(0.3132617 - 0.15)
    assert vpo_loss(w, r, c, beta=0.5, alpha=0.1, online=True).item() == pytest.approx(0.3132617 + 0.15)


def test_against_a_slow_reference():
    w, r, c = draws(3, 40)
    rows = zip(w.tolist(), r.tolist(), c.tolist(), strict=True)
    expected = [minus_log_sigmoid(BETA * (a - b)) - ALPHA * BETA * k for a, b, k in rows]
    assert vpo_loss(w, r, c, beta=BETA, alpha=ALPHA).tolist() == pytest.approx(expected, rel=1e-12)


def test_without_alpha_it_is_dpo():
    w, r, c = draws(3, 40)
    for online in (False, True):
        ours = vpo_loss(w, r, c, beta=BETA, alpha=0.0, online=online)
        torch.testing.assert_close(ours, dpo_loss(w, r, beta=BETA))


def test_calibrated_by_the_chosen_responses_it_is_rpo_up_to_a_constant():
    """RPO with eta = alpha: -alpha beta log policy(w); the difference is alpha beta log reference(w)."""
    pi, ref = -draws(2, 40).abs(), -draws(2, 40, seed=1).abs()
    ours = made(VPO, beta=BETA, alpha=ALPHA).loss(*(logps_of(p, reference=q) for p, q in zip(pi, ref, strict=True)))
    rpo = dpo_loss(pi[0] - ref[0], pi[1] - ref[1], beta=BETA) - BETA * ALPHA * pi[0]
    torch.testing.assert_close(ours, rpo + ALPHA * BETA * ref[0])


def test_offline_pushes_calibration_responses_up_online_down():
    x = draws(3, 9)
    assert gradients(lambda *x: vpo_loss(*x, beta=BETA, alpha=ALPHA), *x)[2].tolist() == pytest.approx([-0.02] * 9)
    online = gradients(lambda *x: vpo_loss(*x, beta=BETA, alpha=ALPHA, online=True), *x)
    assert online[2].tolist() == pytest.approx([0.02] * 9)
    assert (online[0] < 0).all() and (online[1] > 0).all()


def test_gradcheck_start_and_far_out():
    assert_gradcheck(lambda *x: vpo_loss(*x, beta=BETA, alpha=ALPHA), *draws(3, 9))
    assert vpo_loss(*torch.zeros(3, 2), beta=BETA, alpha=ALPHA).tolist() == pytest.approx([math.log(2)] * 2)
    assert_finite_far_out(lambda w, r: vpo_loss(w, r, w, beta=BETA, alpha=ALPHA))
    near = logps_of([-1e-9], reference=[-1e-9]), logps_of([-1e4], reference=[-1e4])
    assert made(VPO).loss(*near).isfinite().all()


def test_it_is_calibrated_in_evaluations_as_regularised_dpo_is():
    """One loss up to a constant: what is said of one's rewards must hold for the other's."""
    assert VPO.reward_is_log_odds == RegularizedPO.reward_is_log_odds
