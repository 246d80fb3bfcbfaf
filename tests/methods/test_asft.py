"""ASFT: absolute log-odds, beside ORPO's relative ones."""

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
from losses import minus_log_sigmoid as ls

from upo.functional.log1mexp import log1mexp
from upo.methods.asft import ASFT, asft_loss
from upo.methods.orpo import ORPO, orpo_loss

CASES = {ASFT: Case(defaults={"lam": 0.1, "beta": 1.0})}


def means(n: int = 50) -> torch.Tensor:
    return -draws(2, n, scale=2.0).abs() - 1e-3


def log_odds(a: float) -> float:
    return a - math.log(-math.expm1(a))


@pytest.mark.parametrize(("fixture", "golden"), [(FIRST, 2.211744), (SECOND, 2.484510)])
def test_golden_values(fixture, golden):
    assert total(made(ASFT), golden_rows(fixture)).item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """p_w = 3/4 and p_l = 1/2 a token: -(1 + lam) log(3/4) - lam log(1/2)."""
    rows = logps_of([2 * math.log(0.75), 3 * math.log(0.5)], lengths=[2, 3], prompts=[0, 0])
    expected = -1.5 * math.log(0.75) - 0.5 * math.log(0.5)
    assert total(made(ASFT, lam=0.5), rows).item() == pytest.approx(expected)
    assert made(ASFT, beta=2.0).reward(rows).tolist() == pytest.approx([2 * math.log(3), 0], abs=1e-12)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_against_a_slow_reference(beta):
    w, r = means()
    expected = [ls(beta * log_odds(a)) + ls(-beta * log_odds(b)) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    assert asft_loss(w, r, beta=beta).tolist() == pytest.approx(expected, rel=1e-9)


def test_it_is_likelihood_of_the_chosen_and_unlikelihood_of_the_rejected():
    w, r = means()
    torch.testing.assert_close(asft_loss(w, r), -w - log1mexp(r))


def test_orpo_is_never_above_and_how_far_below():
    w, r = means()
    orpo, asft = orpo_loss(w, r), asft_loss(w, r)
    assert (orpo <= asft).all()
    p, q = w.exp(), r.exp()
    torch.testing.assert_close(orpo, asft + (p * (1 - q) + q * (1 - p)).log())
    rows = logps_of(torch.stack([w, r], 1).flatten(), prompts=[i // 2 for i in range(100)])
    assert (total(made(ORPO), rows) <= total(made(ASFT), rows)).all()


def test_pointwise():
    """The chosen response's gradient does not depend on the rejected one."""
    w, r = means(9)
    torch.testing.assert_close(gradients(asft_loss, w, r)[0], gradients(asft_loss, w, r - 3)[0])


def test_gradients():
    for beta in (1.0, 0.3):
        assert_gradcheck(lambda w, r, beta=beta: asft_loss(w, r, beta=beta), *means(6))
        down, up = gradients(lambda w, r, beta=beta: asft_loss(w, r, beta=beta), *means(20))
        assert (down < 0).all() and (up > 0).all()
        assert_finite_far_out(lambda w, r, beta=beta: asft_loss(w, r, beta=beta))


def test_certain_responses_have_gradients():
    certain, other = torch.tensor([-1e-9, 0.0]), torch.tensor([-1.0, -1.0])
    _, up = gradients(asft_loss, other, certain)
    assert (up > 0).all() and up.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(asft_loss, certain, other))
