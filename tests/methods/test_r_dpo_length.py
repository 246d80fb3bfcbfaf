"""R-DPO with its penalty on length."""

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
    made,
    minus_log_sigmoid,
)  # fmt: skip

from upo.methods.dpo import dpo_loss
from upo.methods.r_dpo_length import LengthRegularizedDPO, r_dpo_length_loss

CASES = {LengthRegularizedDPO: Case(normaliser_cancels=True, defaults={"beta": 0.1, "alpha": 0.01})}

LONG, SHORT = torch.full((50,), 30), torch.full((50,), 10)


def loss(w, r, long=LONG, short=SHORT, alpha=0.02):
    return r_dpo_length_loss(w, r, long[: len(w)], short[: len(w)], beta=0.1, alpha=alpha)


@pytest.mark.parametrize("fixture", [FIRST, SECOND])
def test_golden_values(fixture):
    loss = made(LengthRegularizedDPO, alpha=0.02).loss(*golden_pair(fixture))
    assert loss.item() == pytest.approx(0.437488, abs=5e-7)


def test_by_hand_and_against_a_slow_reference():
    """0.1 (4 - 2) + 0.04 (30 - 10) = 1."""
    w, r = draws(2, 50)
    assert loss(torch.tensor([4.0]), torch.tensor([2.0]), alpha=0.04).item() == pytest.approx(0.3132617)
    expected = [minus_log_sigmoid(0.1 * (a - b) + 0.02 * 20) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    assert loss(w, r).tolist() == pytest.approx(expected, rel=1e-12)


def test_equals_dpo_without_penalty_and_for_equal_lengths():
    w, r = draws(2, 50)
    torch.testing.assert_close(loss(w, r, alpha=0.0), dpo_loss(w, r, beta=0.1))
    torch.testing.assert_close(loss(w, r, LONG, LONG), dpo_loss(w, r, beta=0.1))
    torch.testing.assert_close(loss(w + 9, r + 9), loss(w, r))


def test_a_longer_winner_is_pushed_less():
    """The plus sign: with a minus it would be pushed more."""
    w, r = draws(2, 50)
    longer, equal, shorter = (
        gradients(lambda x, lengths=lengths: loss(x, r, *lengths), w)[0].abs()
        for lengths in ((LONG, SHORT), (LONG, LONG), (SHORT, LONG))
    )
    assert (longer < equal).all() and (equal < shorter).all()


def test_gradients():
    w, r = draws(2, 9)
    assert_gradcheck(loss, w, r)
    down, up = gradients(loss, w, r)
    assert (down < 0).all() and (up > 0).all()
    assert_finite_far_out(loss)
    one = torch.ones(50, dtype=torch.long)
    assert_finite_far_out(lambda w, r: loss(w, r, one, one))
