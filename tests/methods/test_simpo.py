"""SimPO: mean log-probs, a margin, no reference."""

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
from losses import minus_log_sigmoid as ls

from upo.methods.dpo import dpo_loss
from upo.methods.simpo import SimPO, simpo_loss

CASES = {SimPO: Case(defaults={"beta": 2.0, "gamma": 0.5})}


@pytest.mark.parametrize(("fixture", "golden"), [(FIRST, 1.037488), (SECOND, 1.103186)])
def test_golden_values(fixture, golden):
    loss = total(made(SimPO, beta=2.0, gamma=1.0), golden_rows(fixture))
    assert loss.item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """Sums of -2 and -3 over 2 and 1 tokens: 1 (-1 + 3) - 1 = 1. The sums alone would give 0."""
    rows = logps_of([-2.0, -3.0], lengths=[2, 1], prompts=[0, 0])
    assert total(made(SimPO, beta=1.0, gamma=1.0), rows).item() == pytest.approx(0.3132617)
    assert made(SimPO, beta=3.0).reward(rows).tolist() == [-3, -9], "without the margin"


def test_against_a_slow_reference_and_the_official_parameters():
    w, r = draws(2, 50, scale=3.0)
    expected = [ls(2.5 * (a - b) - 1.375) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    assert simpo_loss(w, r, beta=2.5, gamma=1.375).tolist() == pytest.approx(expected, rel=1e-12)
    ratio = 0.55
    official = -torch.nn.functional.logsigmoid(2.5 * (w - r - ratio))
    torch.testing.assert_close(simpo_loss(w, r, beta=2.5, gamma=2.5 * ratio), official)
    method = made(SimPO)
    assert method.gamma / method.beta == 0.25, "the official default"


def test_without_margin_and_with_equal_lengths_it_is_dpo_without_a_reference():
    logps = draws(10)
    rows = logps_of(logps, lengths=[8] * 10, prompts=[i // 2 for i in range(10)])
    expected = dpo_loss(logps[0::2], logps[1::2], beta=0.1)
    torch.testing.assert_close(total(made(SimPO, beta=0.8, gamma=0.0), rows), expected)


def test_gradients():
    def loss(w, r):
        return simpo_loss(w, r, beta=2.0, gamma=0.5)

    assert_gradcheck(loss, *draws(2, 6, scale=1.0))
    down, up = gradients(loss, *draws(2, 20, scale=1.0))
    assert (down < 0).all() and (up > 0).all()
    assert_finite_far_out(loss)
