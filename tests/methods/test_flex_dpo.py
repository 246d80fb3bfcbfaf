"""Flex-DPO."""

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
    golden_rows,
    gradients,
    made,
    minus_log_sigmoid,
    total,
)  # fmt: skip

from upo.methods.dpo import dpo_loss
from upo.methods.flex_dpo import FlexDPO, flex_dpo_loss

CASES = {FlexDPO: Case(normaliser_cancels=False, defaults={"beta_plus": 0.1, "beta_minus": 0.08, "sft_weight": 0.0})}


def loss(w, r, beta_plus=0.1, beta_minus=0.08):
    return flex_dpo_loss(w, r, beta_plus=beta_plus, beta_minus=beta_minus)


@pytest.mark.parametrize(("fixture", "golden"), [(FIRST, 0.437488), (SECOND, 0.474077)])
def test_golden_values(fixture, golden):
    assert made(FlexDPO).loss(*golden_pair(fixture)).item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """0.5 * 4 - 0.25 * 4 = 1; the regulariser costs 0.3 of 40 / 20 nats a token more."""
    assert loss(torch.tensor([4.0]), torch.tensor([4.0]), 0.5, 0.25).item() == pytest.approx(0.3132617)
    plain, regularised = (total(made(FlexDPO, sft_weight=a), golden_rows(FIRST)).item() for a in (0.0, 0.3))
    assert plain == pytest.approx(0.437488, abs=5e-7) and regularised - plain == pytest.approx(0.6)


def test_against_a_slow_reference():
    w, r = draws(2, 50)
    expected = [minus_log_sigmoid(0.1 * a - 0.08 * b) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    assert loss(w, r).tolist() == pytest.approx(expected, rel=1e-12)


def test_equal_betas_are_dpo_others_are_not_invariant_to_a_shift():
    w, r = draws(2, 50)
    torch.testing.assert_close(loss(w, r, 0.1, 0.1), dpo_loss(w, r, beta=0.1))
    assert not torch.isclose(loss(w + 9, r + 9), loss(w, r)).any()
    assert torch.equal(loss(w, r, 0.1, 0.0), loss(w, 2 * r, 0.1, 0.0)), "one-sided"


def test_gradients():
    w, r = draws(2, 9)
    assert_gradcheck(loss, w, r)
    down, up = gradients(loss, w, r)
    assert (down < 0).all()
    torch.testing.assert_close(up, -0.8 * down)
    assert_finite_far_out(loss)
