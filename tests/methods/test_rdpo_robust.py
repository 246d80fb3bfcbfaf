"""Robust DPO: unbiased under flips, where conservative DPO is not."""

import math

import pytest
import torch
from cases import Case
from losses import FIRST, SECOND, assert_finite_far_out, assert_gradcheck, draws, golden_rows, gradients, made, total
from losses import minus_log_sigmoid as ls

from upo.methods.common.ranges import FlipRate
from upo.methods.dpo import dpo_loss
from upo.methods.rdpo_robust import RobustDPO, robust_dpo_loss

CASES = {
    RobustDPO: Case(normaliser_cancels=True, log_odds_at={"flip_rate": 0.0}, defaults={"beta": 0.1, "flip_rate": 0.1}),
}


@pytest.mark.parametrize("fixture", [FIRST, SECOND])
def test_golden_values(fixture):
    assert total(made(RobustDPO, flip_rate=FlipRate(0.2)), golden_rows(fixture)).item() == pytest.approx(
        0.169853, abs=5e-7
    )


def test_by_hand():
    """z = 0.5 (4 - 2) = 1, eps = 0.25: (0.75 * 0.3132617 - 0.25 * 1.3132617) / 0.5."""
    loss = robust_dpo_loss(torch.tensor([4.0]), torch.tensor([2.0]), beta=0.5, flip_rate=0.25)
    assert loss.item() == pytest.approx(-0.1867383)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4])
def test_against_a_slow_reference_and_the_closed_form(eps):
    w, r = draws(2, 50)
    z = [0.1 * (a - b) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    loss = robust_dpo_loss(w, r, beta=0.1, flip_rate=eps)
    assert loss.tolist() == pytest.approx([((1 - eps) * ls(x) - eps * ls(-x)) / (1 - 2 * eps) for x in z], abs=1e-12)
    assert loss.tolist() == pytest.approx([ls(x) - eps / (1 - 2 * eps) * x for x in z], abs=1e-12)
    torch.testing.assert_close(robust_dpo_loss(w + 7, r + 7, beta=0.1, flip_rate=eps), loss)


def test_without_flips_it_is_dpo_and_under_flips_dpo_on_average():
    w, r = draws(2, 50)
    dpo = dpo_loss(w, r, beta=0.1)
    torch.testing.assert_close(robust_dpo_loss(w, r, beta=0.1, flip_rate=0.0), dpo)
    kept, flipped = (robust_dpo_loss(a, b, beta=0.1, flip_rate=0.3) for a, b in ((w, r), (r, w)))
    torch.testing.assert_close(0.7 * kept + 0.3 * flipped, dpo)


def test_log_2_and_larger_gradients_than_dpo_where_policy_is_reference():
    """With conservative DPO's sign they would be smaller: beta (1 - 2 eps) / 2."""
    zero = torch.zeros(2)
    assert robust_dpo_loss(zero, zero, beta=0.1, flip_rate=0.2).tolist() == pytest.approx([math.log(2)] * 2)
    down, up = gradients(lambda w, r: robust_dpo_loss(w, r, beta=0.1, flip_rate=0.2), zero, zero)
    assert down.tolist() == pytest.approx([-0.1 / (2 * 0.6)] * 2) and up.tolist() == pytest.approx(
        [0.1 / (2 * 0.6)] * 2
    )


def test_negative_and_falling_without_end():
    z = torch.tensor([50.0, 500.0, 5000.0])
    loss = robust_dpo_loss(z, torch.zeros(3), beta=1.0, flip_rate=0.2)
    assert loss.tolist() == pytest.approx([-z / 3 for z in (50, 500, 5000)])


def test_gradients():
    def loss(w, r):
        return robust_dpo_loss(w, r, beta=0.1, flip_rate=0.2)

    assert_gradcheck(loss, *draws(2, 6))
    down, up = gradients(loss, *draws(2, 20))
    assert (down < 0).all() and (up > 0).all()
    assert_finite_far_out(loss)


def test_a_coin_flip_is_refused():
    with pytest.raises(ValueError, match=r"0\.5"):
        FlipRate(0.5)
