"""IPO: a finite target, on sums and on means."""

import pytest
import torch
from cases import Case
from losses import (
    FIRST,
    SECOND,
    assert_finite_far_out,
    assert_gradcheck,
    draws,
    golden_rows,
    gradients,
    logps_of,
    made,
    total,
)

from upo.methods.ipo import IPO, IPOAveraged, ipo_loss

CASES = {
    IPO: Case(normaliser_cancels=True, defaults={"tau": 0.1}),
    IPOAveraged: Case(normaliser_cancels=False, defaults={"tau": 0.1}),
}


@pytest.mark.parametrize(("fixture", "averaged"), [(FIRST, 22.09), (SECOND, 22.5625)])
def test_golden_values(fixture, averaged):
    assert total(made(IPO), golden_rows(fixture)).item() == pytest.approx(4, abs=1e-9)
    assert total(made(IPOAveraged), golden_rows(fixture)).item() == pytest.approx(averaged, abs=5e-7)


def test_by_hand():
    """h = 2 - 1 = 1 against a target of 1 / (2 * 0.25) = 2; a token: h = 2/2 - 1/4 = 0.75, off by 1.25."""
    rows = logps_of([-8.0, -9.0], reference=[-10.0, -10.0], lengths=[2, 4], prompts=[0, 0])
    assert total(made(IPO, tau=0.25), rows).item() == 1
    assert total(made(IPOAveraged, tau=0.25), rows).item() == 1.25**2
    assert made(IPO, tau=0.25).reward(rows).tolist() == [0.5, 0.25]
    assert made(IPOAveraged, tau=0.25).reward(rows).tolist() == [0.25, 0.0625]


@pytest.mark.parametrize("tau", [0.01, 0.1, 2.0])
def test_against_a_slow_reference(tau):
    w, r = draws(2, 40)
    expected = [(a - b) ** 2 - (a - b) / tau + 1 / (4 * tau**2) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    assert ipo_loss(w, r, tau=tau).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    torch.testing.assert_close(ipo_loss(w + 7, r + 7, tau=tau), ipo_loss(w, r, tau=tau))


def test_where_policy_is_reference():
    zero = torch.zeros(2)
    assert ipo_loss(zero, zero, tau=0.1).tolist() == pytest.approx([25, 25])


def test_equal_lengths_average_as_sums_of_another_tau():
    policy, reference = draws(2, 10)
    rows = logps_of(policy, reference=reference, lengths=[8] * 10, prompts=[0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    torch.testing.assert_close(total(made(IPOAveraged, tau=0.8), rows), total(made(IPO, tau=0.1), rows) / 64)


def test_one_token_is_averaged_already():
    rows = logps_of([-3.0, -1e-9], reference=[-4.0, -2.0], prompts=[0, 0])
    assert total(made(IPOAveraged), rows).tolist() == total(made(IPO), rows).tolist()


def test_the_target_is_a_minimum_and_going_beyond_costs():
    w = torch.tensor([3.0, 5.0, 7.0])
    down, up = gradients(lambda a, b: ipo_loss(a, b, tau=0.1), w, torch.zeros(3))
    assert down.tolist() == [-4, 0, 4] and up.tolist() == [4, 0, -4]


def test_gradients():
    assert_gradcheck(lambda a, b: ipo_loss(a, b, tau=0.1), *draws(2, 6))
    assert_finite_far_out(lambda a, b: ipo_loss(a, b, tau=0.1))
