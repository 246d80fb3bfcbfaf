"""SLiC-HF: a hinge on log-probs and the likelihood of the chosen response."""

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

from upo.methods.slic_hf import SLiCHF, slic_loss

CASES = {SLiCHF: Case(defaults={"delta": 1.0, "lam": 0.1, "nll_per_token": False})}


@pytest.mark.parametrize(("fixture", "golden"), [(FIRST, 4.0), (SECOND, 4.5)])
def test_golden_values(fixture, golden):
    assert total(made(SLiCHF), golden_rows(fixture)).item() == pytest.approx(golden, abs=1e-9)


def test_by_hand():
    """1 + 3 - 4 = 0 is met, 1 + 5 - 4 = 2 is not; 0.1 * 3 and 0.1 * 5 for the likelihood, a fifth of it a token."""
    rows = logps_of([-3.0, -4.0, -5.0, -4.0], lengths=[5, 2, 5, 2], prompts=[0, 0, 1, 1])
    assert total(made(SLiCHF), rows).tolist() == pytest.approx([0.3, 2.5])
    assert total(made(SLiCHF, nll_per_token=True), rows).tolist() == pytest.approx([0.06, 2.1])
    assert made(SLiCHF).reward(rows).tolist() == [-3, -4, -5, -4], "without a reference"


def test_against_a_slow_reference():
    """The hinge is one value a pair, not pairs by pairs as when a column meets a row."""
    w, r = draws(2, 50)
    expected = [max(0.0, 2.5 - a + b) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    loss = slic_loss(w, r, delta=2.5)
    assert loss.shape == (50,) and loss.tolist() == pytest.approx(expected)


def test_gradients_end_where_the_margin_is_met():
    w, r = torch.tensor([0.0, 2.0, 0.5]), torch.tensor([1.0, 0.0, 0.0])
    down, up = gradients(lambda a, b: slic_loss(a, b, delta=1.0), w, r)
    assert down.tolist() == [-1, 0, -1] and up.tolist() == [1, 0, 1]
    assert_gradcheck(lambda a, b: slic_loss(a, b, delta=1.0), *draws(2, 6))
    assert_finite_far_out(lambda a, b: slic_loss(a, b, delta=1.0))
