"""ORPO: the log-odds ratio of mean log-probs beside the likelihood of the chosen response."""

import math

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

from upo.methods.orpo import ORPO, orpo_loss

CASES = {ORPO: Case(defaults={"lam": 0.1})}


def means(n: int = 50) -> torch.Tensor:
    return -draws(2, n, scale=2.0).abs() - 1e-3


def slow(a: float, b: float) -> float:
    """-log [p_w (1 - p_l) / (p_w (1 - p_l) + p_l (1 - p_w))]."""
    w, r = math.exp(a) * -math.expm1(b), math.exp(b) * -math.expm1(a)
    return -math.log(w / (w + r))


@pytest.mark.parametrize(("fixture", "golden"), [(FIRST, 2.058564), (SECOND, 2.311346)])
def test_golden_values(fixture, golden):
    assert total(made(ORPO), golden_rows(fixture)).item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """p_w = 3/4 and p_l = 1/2 a token: odds 3 and 1, sigmoid(log 3) = 3/4."""
    rows = logps_of([2 * math.log(0.75), 3 * math.log(0.5)], lengths=[2, 3], prompts=[0, 0])
    assert total(made(ORPO, lam=0.5), rows).item() == pytest.approx(-math.log(0.75) - 0.5 * math.log(0.75))
    assert made(ORPO).reward(rows).tolist() == pytest.approx([math.log(3), 0], abs=1e-12)


def test_against_a_slow_reference():
    w, r = means()
    expected = [slow(a, b) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    assert orpo_loss(w, r).tolist() == pytest.approx(expected, rel=1e-9)


def test_log_2_for_equals_and_a_margin_loss_for_unlikely_responses():
    w, r = means(5)
    assert orpo_loss(w, w).tolist() == pytest.approx([math.log(2)] * 5)
    far = orpo_loss(w - 50, r - 50)
    torch.testing.assert_close(far, -torch.nn.functional.logsigmoid(w - r))
    assert not torch.allclose(far, orpo_loss(w, r), atol=1e-3), "sums instead of means would be there already"


def test_lengths_enter_through_means_alone():
    long, short = (logps_of([-2.0 * n, -3.0 * n], lengths=[n, n], prompts=[0, 0]) for n in (7, 1))
    torch.testing.assert_close(total(made(ORPO), long), total(made(ORPO), short))


def test_gradients():
    assert_gradcheck(orpo_loss, *means(6))
    down, up = gradients(orpo_loss, *means(20))
    assert (down < 0).all() and (up > 0).all()
    assert_finite_far_out(orpo_loss)


def test_certain_responses_have_gradients():
    """A response of one token whose log-prob rounds to 0; public code gives NaN at -1e-9."""
    certain, other = torch.tensor([-1e-9, 0.0]), torch.tensor([-1.0, -1.0])
    down, up = gradients(orpo_loss, other, certain)
    assert (down < 0).all() and (up > 0).all() and up.isfinite().all(), "a certain rejected response is still unlearnt"
    assert all(g.isfinite().all() for g in gradients(orpo_loss, certain, other))
