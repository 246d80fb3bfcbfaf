"""Step-APO: the offset, its sign, and where Q comes from."""

import pytest
import torch
from cases import Case
from losses import FIRST, SECOND, assert_finite_far_out, assert_gradcheck, draws, gradients, logps_of, made
from losses import minus_log_sigmoid as ls
from tiny import batch_of, examples_of

from upo.data.example import Example, Response
from upo.data.units import Unit
from upo.methods.dpo import dpo_loss
from upo.methods.step_apo import StepAPO, ValuedStepView, step_apo_loss

CASES = {
    StepAPO: Case(
        source="tiny.scored_pairs", normaliser_cancels=True, log_odds_at=None, defaults={"beta": 0.3, "alpha": 1.0}
    ),
}


@pytest.mark.parametrize("fixture", [FIRST, SECOND])
def test_golden_values(fixture):
    pi_w, ref_w, pi_l, ref_l = torch.tensor(fixture, dtype=torch.float64)[:, None]
    gap = torch.tensor([0.5], dtype=torch.float64)
    assert step_apo_loss(pi_w - ref_w, pi_l - ref_l, gap, beta=0.1).item() == pytest.approx(0.598139, abs=5e-7)


def test_by_hand():
    """0.3 * 10 - 2 * 1 = 1: alpha is not multiplied by beta."""
    ten, zero, one = (torch.tensor([x]) for x in (10.0, 0.0, 1.0))
    assert step_apo_loss(ten, zero, one, beta=0.3, alpha=2.0).item() == pytest.approx(0.3132617)


def test_against_a_slow_reference_and_its_limits():
    w, r, q = draws(3, 50)
    expected = [ls(0.3 * (a - b) - 0.7 * g) for a, b, g in zip(w.tolist(), r.tolist(), q.tolist(), strict=True)]
    assert step_apo_loss(w, r, q, beta=0.3, alpha=0.7).tolist() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(step_apo_loss(w, r, q, beta=0.3, alpha=0.0), dpo_loss(w, r, beta=0.3))
    torch.testing.assert_close(step_apo_loss(w, r, 0 * q, beta=0.3), dpo_loss(w, r, beta=0.3))


def test_a_larger_advantage_asks_for_a_larger_margin_and_q_gets_no_gradient():
    w, r, q = draws(3, 20)
    assert (step_apo_loss(w, r, q + 1, beta=0.3) > step_apo_loss(w, r, q, beta=0.3)).all()
    down, up = gradients(lambda a, b: step_apo_loss(a, b, q, beta=0.3), w, r)
    assert (down < 0).all() and (up > 0).all()
    assert not step_apo_loss(w, r, q.clone().requires_grad_(), beta=0.3).requires_grad


def test_gradcheck_and_finite_far_out():
    assert_gradcheck(lambda a, b: step_apo_loss(a, b, torch.full_like(a, 0.5), beta=0.3), *draws(2, 6))
    assert_finite_far_out(lambda a, b: step_apo_loss(a, b, torch.full_like(a, 0.5), beta=0.3))


def example(*scores: float | None) -> Example:
    texts = ("a\nb\nc", "a\nx\ny", "a\nz")
    responses = (Response(t, rank=min(i, 1), score=s) for i, (t, s) in enumerate(zip(texts, scores, strict=False)))
    return Example("Q:\n", tuple(responses))


def test_q_is_the_score_and_adding_a_constant_changes_nothing():
    views = examples_of(ValuedStepView(), example(0.75, -0.5, 1.0), 5)
    assert [[r.text for r in v.responses] for v in views] == [["b\n", "x\n"], ["b\n", "z"]]
    tokens = [Unit.of([5], ([1, 2], [3, 2]), v) for v in views]
    batch = batch_of(tokens, ValuedStepView())
    assert batch["q"].tolist() == [0.75, -0.5, 0.75, 1.0]
    method = made(StepAPO, beta=0.5, alpha=2.0)
    terms = method.terms(batch, logps_of([-3.0, -5.0, -3.0, -5.0], reference=[-4.0] * 4, prompts=[0, 0, 1, 1]), {})
    assert terms["preference"].values.tolist() == pytest.approx([ls(1 - 2.5), ls(1 + 0.5)])


def test_unscored_steps_are_left_out():
    assert examples_of(ValuedStepView(), example(None, -0.5), 5) == []
    assert len(examples_of(ValuedStepView(), example(0.5, None, -0.5), 5)) == 1
