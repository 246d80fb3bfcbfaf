"""Hybrid-DPO: the reference's margin counts only where it is right."""

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
    made,
    minus_log_sigmoid,
)

from upo.methods.dpo import dpo_loss
from upo.methods.hybrid_dpo import HybridDPO, hybrid_dpo_loss

CASES = {HybridDPO: Case(normaliser_cancels=True, defaults={"beta": 0.1})}


def loss(w, r, ref_w, ref_r):
    return hybrid_dpo_loss(w, r, ref_w, ref_r, beta=0.1)


def test_by_hand():
    """Policy margin 15. Reference margin 8, counted: 0.1 (15 - 8); margin -8, not counted: 0.1 * 15."""
    assert made(HybridDPO).loss(*golden_pair(FIRST)).item() == pytest.approx(0.403186, abs=5e-7)
    wrong = golden_pair((-40.0, -50.0, -55.0, -42.0))
    assert made(HybridDPO).loss(*wrong).item() == pytest.approx(0.2014133, abs=5e-7)


def test_against_a_slow_reference():
    inputs = draws(4, 50)
    expected = [minus_log_sigmoid(0.1 * ((a - b) - max(0.0, c - d))) for a, b, c, d in inputs.T.tolist()]
    assert loss(*inputs).tolist() == pytest.approx(expected, rel=1e-12)


def test_dpo_where_the_reference_is_right_reference_free_where_it_is_wrong():
    w, r, ref_w, ref_r = draws(4, 50)
    right = ref_w >= ref_r
    hybrid, dpo = loss(w, r, ref_w, ref_r), dpo_loss(w - ref_w, r - ref_r, beta=0.1)
    torch.testing.assert_close(hybrid[right], dpo[right])
    torch.testing.assert_close(hybrid[~right], dpo_loss(w, r, beta=0.1)[~right])
    assert (hybrid >= dpo - 1e-12).all() and 5 < right.sum() < 45
    torch.testing.assert_close(loss(w + 3, r + 3, ref_w - 5, ref_r - 5), hybrid)


def test_gradients():
    w, r, ref_w, ref_r = draws(4, 9)
    assert_gradcheck(lambda w, r: loss(w, r, ref_w, ref_r), w, r)
    down, up = gradients(lambda w, r: loss(w, r, ref_w, ref_r), w, r)
    assert (down < 0).all()
    torch.testing.assert_close(up, -down)
    for ref_w, ref_r in ((0.0, 0.0), (1e4, -1e4), (-1e4, 1e4)):
        assert_finite_far_out(lambda w, r, a=ref_w, b=ref_r: loss(w, r, torch.full_like(w, a), torch.full_like(r, b)))
