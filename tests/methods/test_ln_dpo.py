"""LN-DPO and LN-DPOP."""

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
)  # fmt: skip

from upo.methods.dpo import dpo_loss
from upo.methods.ln_dpo import LNDPO, LNDPOP, ln_dpo_loss

CASES = {
    LNDPO: Case(normaliser_cancels=False, defaults={"beta": 5.0}),
    LNDPOP: Case(kink_at_start=True, normaliser_cancels=False, defaults={"beta": 5.0, "lam": 5.0}),
}

LENGTHS = torch.arange(1, 51), torch.arange(51, 101)


def loss(w, r, lam=0.0, beta=5.0, lengths=LENGTHS):
    return ln_dpo_loss(w, r, *(n[: len(w)] for n in lengths), beta=beta, lam=lam)


@pytest.mark.parametrize(("fixture", "golden"), [(FIRST, 0.201413), (SECOND, 0.251929)])
def test_golden_values(fixture, golden):
    assert made(LNDPO, beta=5.0).loss(*golden_pair(fixture)).item() == pytest.approx(golden, abs=5e-7)
    if fixture is FIRST:  # the chosen response gained: no penalty
        assert made(LNDPOP, beta=5.0).loss(*golden_pair(fixture)).item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """5 (-3/20 + 10/25 - 2 * 3/20) = -0.25."""
    value = made(LNDPOP, beta=5.0, lam=2.0).loss(*golden_pair(SECOND)).item()
    assert value == pytest.approx(minus_log_sigmoid(-0.25), abs=1e-9) == pytest.approx(0.8259394)


@pytest.mark.parametrize("lam", [0.0, 3.0])
def test_against_a_slow_reference(lam):
    w, r = draws(2, 50)
    expected = [
        minus_log_sigmoid(5 * (a / n - b / m - lam * max(0.0, -a / n)))
        for a, b, n, m in zip(w.tolist(), r.tolist(), *(x.tolist() for x in LENGTHS), strict=True)
    ]
    assert loss(w, r, lam).tolist() == pytest.approx(expected, rel=1e-12)


def test_equal_lengths_give_dpo_with_beta_divided_by_the_length():
    w, r = draws(2, 50)
    eight = torch.full((50,), 8)
    torch.testing.assert_close(loss(w, r, lengths=(eight, eight)), dpo_loss(w, r, beta=5 / 8))
    torch.testing.assert_close(loss(w, r, 0.7, lengths=(eight, eight))[w >= 0], dpo_loss(w, r, beta=5 / 8)[w >= 0])


def test_repeating_both_responses_changes_nothing():
    w, r = draws(2, 50)
    torch.testing.assert_close(loss(3 * w, 3 * r, 0.7, lengths=[3 * n for n in LENGTHS]), loss(w, r, 0.7))


def test_the_penalty_raises_the_loss_and_its_slope_below_the_reference():
    w, r = draws(2, 50)
    below = w < 0
    assert (loss(w, r, 2.0) >= loss(w, r)).all() and (loss(w, r, 2.0) > loss(w, r))[below & (r < 50)].all()
    z = 5 * (w / LENGTHS[0] - r / LENGTHS[1] - 2.0 * (-w).relu() / LENGTHS[0])
    expected = -5 / LENGTHS[0] * torch.sigmoid(-z) * torch.where(below, 3.0, 1.0)
    torch.testing.assert_close(gradients(lambda x: loss(x, r, 2.0), w)[0], expected)


@pytest.mark.parametrize("lam", [0.0, 2.0])
def test_gradients(lam):
    w, r = draws(2, 9)
    assert_gradcheck(lambda w, r: loss(w, r, lam), w, r)
    down, up = gradients(lambda w, r: loss(w, r, lam), w, r)
    assert (down < 0).all() and (up > 0).all()
    one = torch.ones(50, dtype=torch.long)
    for lengths in (LENGTHS, (one, one)):
        assert_finite_far_out(lambda w, r, lengths=lengths: loss(w, r, lam, lengths=lengths))


def test_the_reward_is_a_mean_over_tokens():
    logps = logps_of([-6.0, -4.0], reference=[-9.0, -9.0], lengths=[3, 5])
    assert made(LNDPO, beta=2.0).reward(logps).tolist() == [2.0, 2.0]
