"""DPOP: DPO, and a price inside the sigmoid for a chosen response that fell."""

import math

import pytest
import torch
from cases import Case
from losses import FIRST, SECOND, assert_finite_far_out, assert_gradcheck, draws, golden_rows, gradients, made, total
from losses import minus_log_sigmoid as ls

from upo.methods.dpo import dpo_loss
from upo.methods.dpop import DPOP, dpop_loss

CASES = {DPOP: Case(kink_at_start=True, normaliser_cancels=False, defaults={"beta": 0.3, "lam": 50.0})}


@pytest.mark.parametrize(("fixture", "golden"), [(FIRST, 0.403186), (SECOND, 1.171101)])
def test_golden_values(fixture, golden):
    """The same difference of log-ratios, but in the second fixture the chosen response fell by 3 nats."""
    assert total(made(DPOP, beta=0.1, lam=5.0), golden_rows(fixture)).item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """r_w = -1, r_l = -7: 0.5 (6 - 4 * 1) = 1; r_w = 1, r_l = -1: 0.5 * 2 = 1 without a price."""
    loss = dpop_loss(torch.tensor([-1.0, 1.0]), torch.tensor([-7.0, -1.0]), beta=0.5, lam=4.0)
    assert loss.tolist() == pytest.approx([0.3132617, 0.3132617])


def test_against_a_slow_reference():
    w, r = draws(2, 50)
    expected = [ls(0.1 * (a - b - 5 * max(0.0, -a))) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    assert dpop_loss(w, r, beta=0.1, lam=5.0).tolist() == pytest.approx(expected, rel=1e-12)


def test_dpo_without_a_drop_and_above_it_with_one():
    w, r = draws(2, 50)
    dpo, dpop = dpo_loss(w, r, beta=0.1), dpop_loss(w, r, beta=0.1, lam=50.0)
    risen = w >= 0
    assert risen.any() and not risen.all()
    torch.testing.assert_close(dpop[risen], dpo[risen])
    assert (dpop[~risen] > dpo[~risen]).all()
    torch.testing.assert_close(dpop_loss(w, r, beta=0.1, lam=0.0), dpo)


def test_start():
    zero = torch.zeros(2)
    assert dpop_loss(zero, zero, beta=0.3, lam=50.0).tolist() == pytest.approx([math.log(2)] * 2)
    down, up = gradients(lambda w, r: dpop_loss(w, r, beta=0.3, lam=50.0), zero, zero)
    assert down.tolist() == pytest.approx([-0.15] * 2) and up.tolist() == pytest.approx([0.15] * 2), "0 at the kink"


def test_the_chosen_response_is_pulled_lambda_times_harder_once_it_fell():
    w, r = draws(2, 20)
    z = 0.1 * (w - r - 5 * (-w).relu())
    down, up = gradients(lambda a, b: dpop_loss(a, b, beta=0.1, lam=5.0), w, r)
    torch.testing.assert_close(down, -0.1 * torch.sigmoid(-z) * torch.where(w < 0, 6.0, 1.0))
    torch.testing.assert_close(up, 0.1 * torch.sigmoid(-z))


def test_gradients():
    assert_gradcheck(lambda a, b: dpop_loss(a, b, beta=0.1, lam=5.0), *draws(2, 6))
    assert_finite_far_out(lambda a, b: dpop_loss(a, b, beta=0.3, lam=50.0))
