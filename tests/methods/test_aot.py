"""AOT: losses between sorted values; `test_stepwise.py` has the sort over a step."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from cases import Case
from losses import assert_finite_far_out, assert_gradcheck, draws, gradients, minus_log_sigmoid

from upo.methods.aot import AOTPaired, AOTUnpaired, aot_paired_loss, aot_unpaired_loss
from upo.methods.dpo import dpo_loss

CASES = {
    AOTPaired: Case(normaliser_cancels=True, defaults={"beta": 0.01, "label_smoothing": 0.0}),
    AOTUnpaired: Case(normaliser_cancels=False, defaults={"beta": 0.01, "label_smoothing": 0.0}),
}

BETA = 0.1
ROWS = draws(4, 12)


def unpaired(u, v, **options):
    """Values weighted by their masses: their sum is the loss."""
    values, masses = aot_unpaired_loss(u, v, **({"beta": BETA} | options))
    return values * masses


def slow_unpaired(u: list[float], v: list[float], beta: float) -> float:
    """The quantile functions of both samples, compared at every midpoint of a grid on which both are constant."""
    u, v, cells = sorted(u), sorted(v), len(u) * len(v)
    total = 0.0
    for k in range(cells):
        at = Fraction(2 * k + 1, 2 * cells)
        total += minus_log_sigmoid(beta * (u[math.floor(at * len(u))] - v[math.floor(at * len(v))]))
    return total / cells


@pytest.mark.parametrize("logps", [(-40.0, -42.0, -55.0, -50.0), (-45.0, -42.0, -60.0, -50.0)])
def test_one_pair_is_dpo(logps):
    """The golden values of DPO, .403186 in both fixtures."""
    pi_w, ref_w, pi_l, ref_l = torch.tensor(logps, dtype=torch.float64)[:, None]
    assert aot_paired_loss(pi_w, pi_l, ref_w, ref_l, beta=BETA).item() == pytest.approx(0.403186, abs=5e-7)
    assert unpaired(pi_w - ref_w, pi_l - ref_l).sum().item() == pytest.approx(0.403186, abs=5e-7)
    smooth = aot_paired_loss(pi_w, pi_l, ref_w, ref_l, beta=BETA, label_smoothing=0.2)
    assert smooth.item() == pytest.approx(0.543186, abs=5e-7)


def test_by_hand():
    """Margins 5, 1 against 4, 0: sorted 1 - 0 and 5 - 4, though the pairs themselves differ by 5 and -3."""
    w, r = torch.tensor([5.0, 1.0]), torch.tensor([0.0, 0.0])
    value = aot_paired_loss(w, r, torch.tensor([0.0, 4.0]), r, beta=1.0)
    assert value.tolist() == pytest.approx([0.3132617] * 2)
    values, masses = aot_unpaired_loss(torch.tensor([3.0, 1.0]), torch.tensor([0.0]), beta=1.0)
    assert values.tolist() == pytest.approx([0.3132617, 0.0485874]) and masses.tolist() == [0.5, 0.5]


def test_paired_against_a_slow_reference():
    w, r, a, b = ROWS.tolist()
    ours = sorted(x - y for x, y in zip(w, r, strict=True))
    theirs = sorted(x - y for x, y in zip(a, b, strict=True))
    expected = [minus_log_sigmoid(BETA * (u - v)) for u, v in zip(ours, theirs, strict=True)]
    assert aot_paired_loss(*ROWS, beta=BETA).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 4), (3, 7), (7, 3), (6, 4), (1, 5), (5, 1)])
def test_unpaired_against_a_slow_reference(n, m):
    u, v = draws(n, seed=n), draws(m, seed=10 + m)
    values, masses = aot_unpaired_loss(u, v, beta=BETA)
    assert masses.sum().item() == pytest.approx(1) and (masses > 0).all()
    assert (values * masses).sum().item() == pytest.approx(slow_unpaired(u.tolist(), v.tolist(), BETA), rel=1e-12)
    if n == m:
        torch.testing.assert_close(values, dpo_loss(u.sort().values, v.sort().values, beta=BETA))


def test_sorting_is_the_cheapest_of_all_couplings():
    """For a convex h, over all 120 permutations; so the loss is at most DPO's on the same pairs."""
    u, v = draws(5, seed=4), draws(5, seed=5)
    costs = [dpo_loss(u, v[list(p)], beta=BETA).mean().item() for p in itertools.permutations(range(5))]
    assert unpaired(u, v).sum().item() == pytest.approx(min(costs), rel=1e-12)
    assert max(costs) > min(costs) + 1e-3


def test_the_order_of_pairs_does_not_matter():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(aot_paired_loss(*ROWS[:, order], beta=BETA), aot_paired_loss(*ROWS, beta=BETA))
    torch.testing.assert_close(unpaired(ROWS[0, order], ROWS[1]), unpaired(ROWS[0], ROWS[1]))


def test_gradients_follow_the_values_through_the_sort():
    w, r, a, b = ROWS
    down, up = gradients(lambda x, y: aot_paired_loss(x, y, a, b, beta=BETA), w, r)
    assert (down < 0).all() and (up > 0).all()
    torch.testing.assert_close(down, -up)
    down, up = gradients(unpaired, w, r[:5])
    assert (down < 0).all() and (up > 0).all()
    assert_gradcheck(lambda x, y: aot_paired_loss(x, y, a[:5], b[:5], beta=BETA), w[:5], r[:5])
    assert_gradcheck(unpaired, w[:5], r[:3])


def test_one_kind_alone_is_no_loss():
    for u, v in ((draws(3), draws(0)), (draws(0), draws(3))):
        assert unpaired(u, v).sum().item() == 0
        assert all((g == 0).all() for g in gradients(unpaired, u, v))


def test_log_2_and_half_beta_where_policy_is_reference():
    w, r = ROWS[:2]
    assert aot_paired_loss(w, r, w, r, beta=BETA).tolist() == pytest.approx([math.log(2)] * 12)
    (down,) = gradients(lambda x: aot_paired_loss(x, r, w, r, beta=BETA), w)
    assert down.tolist() == pytest.approx([-BETA / 2] * 12)


def test_finite_far_out():
    assert_finite_far_out(lambda w, r: aot_paired_loss(w, r, torch.zeros_like(w), torch.zeros_like(r), beta=BETA))
    assert_finite_far_out(unpaired)
