"""ODPO: the loss, and which pairs have an offset."""

import math

import pytest
import torch
from attrs import evolve
from cases import Case
from losses import (
    FIRST,
    SECOND,
    assert_finite_far_out,
    assert_gradcheck,
    draws,
    golden_rows,
    gradients,
    made,
    minus_log_sigmoid,
)  # fmt: skip
from tiny import batch_of, examples_of, unit

from upo.data.example import Example, Response
from upo.methods.dpo import dpo_loss
from upo.methods.odpo import ODPO, ScoredPairView, odpo_loss

CASES = {ODPO: Case(source="tiny.scored_pairs", normaliser_cancels=True, defaults={"beta": 0.1, "alpha": 1.0})}


def loss(w, r, gap, alpha=1.0):
    return odpo_loss(w, r, gap, beta=0.1, alpha=alpha)


@pytest.mark.parametrize("fixture", [FIRST, SECOND])
def test_golden_values(fixture):
    pi_w, ref_w, pi_l, ref_l = torch.tensor(fixture, dtype=torch.float64)[:, None]
    gap = torch.full((1,), math.e, dtype=torch.float64)
    assert loss(pi_w - ref_w, pi_l - ref_l, gap).item() == pytest.approx(0.854355, abs=5e-7)


def test_the_gap_of_a_batch_reaches_the_loss():
    """Scores 3 and 1: 0.1 * 7 - 0.5 log 2 = 0.353426."""
    pair = scored(3.0, 1.0)
    batch = batch_of([unit_of(pair)], ScoredPairView())
    (term,) = made(ODPO, alpha=0.5).terms(batch, golden_rows(FIRST), {}).values()
    assert batch["score_gaps"].tolist() == [2.0, -2.0] and term.mean_over == "prompts"
    assert term.values.tolist() == pytest.approx([math.log1p(math.exp(-0.353426))], abs=1e-6)


def test_against_a_slow_reference():
    w, r = draws(2, 50)
    gap = draws(50, scale=1.0).exp()
    expected = [
        minus_log_sigmoid(0.1 * (a - b) - 0.5 * math.log(g))
        for a, b, g in zip(w.tolist(), r.tolist(), gap.tolist(), strict=True)
    ]
    assert loss(w, r, gap, 0.5).tolist() == pytest.approx(expected, rel=1e-12)


def test_no_offset_at_alpha_0_or_a_gap_of_1_and_a_negative_one_below():
    w, r = draws(2, 50)
    one, small, dpo = torch.ones_like(w), torch.full_like(w, 0.5), dpo_loss(w, r, beta=0.1)
    torch.testing.assert_close(loss(w, r, 7 * one, 0.0), dpo)
    torch.testing.assert_close(loss(w, r, one), dpo)
    assert (loss(w, r, small) < dpo).all() and (loss(w, r, 2 * one) > dpo).all()
    torch.testing.assert_close(loss(w + 9, r + 9, small), loss(w, r, small))


def test_gradients():
    w, r = draws(2, 9)
    gap = torch.linspace(0.1, 5, 9, dtype=torch.float64)
    assert_gradcheck(lambda w, r: loss(w, r, gap), w, r)
    down, up = gradients(lambda w, r: loss(w, r, gap), w, r)
    assert (down < 0).all()
    torch.testing.assert_close(up, -down)
    for g in (1e-9, 1.0, 1e9):
        assert_finite_far_out(lambda w, r, g=g: loss(w, r, torch.full_like(w, g)))


def scored(*scores: float | None, ranks: tuple[float, float] | None = None) -> Example:
    ranked = zip(scores, ranks or [None] * len(scores), strict=True)
    return Example("p", tuple(Response(str(i), score=s, rank=k) for i, (s, k) in enumerate(ranked)))


def unit_of(pair: Example):
    made_up = unit([3], [4, 5], [6])
    return evolve(made_up, example=pair)


@pytest.mark.parametrize(
    ("example", "texts"),
    [
        (scored(1.0, 4.0), ["10"]),
        (scored(1.0, None, 4.0, 2.0), ["20", "23", "30"]),
        (scored(2.0, 2.0), []),
        (scored(2.0, None), []),
        (scored(None, None, ranks=(0, 1)), []),
        (scored(5.0, 3.0, ranks=(0, 1)), ["01"]),
        (scored(3.0, 5.0, ranks=(0, 1)), []),
    ],
)
def test_only_pairs_with_a_gap_above_0(example, texts):
    """A tie would give an offset of minus infinity, a chosen response with the lower score NaN."""
    assert ["".join(r.text for r in pair.responses) for pair in examples_of(ScoredPairView(), example, 9)] == texts
