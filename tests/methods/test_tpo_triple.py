"""TPO and TPO-L: the contrast, the gold response, and which responses make a triple."""

import math

import pytest
import torch
from losses import FIRST, SECOND, assert_finite_far_out, assert_gradcheck, draws, gradients, logps_of, made
from losses import minus_log_sigmoid as ls
from tiny import batch_of, examples_of, unit, units

from upo.data.example import Example, Response
from upo.methods.dpo import dpo_loss
from upo.methods.tpo_triple import TPO, TPOL, TripleView, tpo_loss


@pytest.mark.parametrize(("fixture", "average"), [(FIRST, 1.037488), (SECOND, 1.103186)])
def test_golden_values(fixture, average):
    """The contrast is that of CPO (beta 0.1, without its likelihood); with averages and a margin it is SimPO's."""
    w, r = (torch.tensor([fixture[i]], dtype=torch.float64) for i in (0, 2))
    assert tpo_loss(w, r, beta=0.1).item() == pytest.approx(0.201413, abs=5e-7)
    assert tpo_loss(w / 20, r / 25, beta=2.0, gamma=1.0).item() == pytest.approx(average, abs=5e-7)


def batch() -> TripleView():
    """Two triples of unequal lengths."""
    return batch_of(units([(3, [4, 2, 5]), (2, [1, 3, 2])]), TripleView())


LOGPS = logps_of([-8.0, -3.0, -5.0, -1.0, -6.0, -4.0], lengths=[4, 2, 5, 1, 3, 2], prompts=[0, 0, 0, 1, 1, 1])


def test_by_hand():
    """0.5 (-3 + 5) = 1 and 0.5 (-6 + 4) = -1; the gold responses cost 8/4 and 1/1 nats a token."""
    terms = made(TPO, beta=0.5).terms(batch(), LOGPS, {})
    assert terms["preference"].values.tolist() == pytest.approx([0.3132617, 1.3132617])
    assert terms["gold"].values.tolist() == [2.0, 1.0]
    assert terms["gold"].weight == 0.9 and terms["preference"].weight == 1
    assert {t.mean_over for t in terms.values()} == {"prompts"}


def test_tpol_takes_averages_and_a_margin():
    method = made(TPOL, beta=2.0, gamma=0.5)
    terms = method.terms(batch(), LOGPS, {})
    expected = [ls(2 * (-3 / 2 + 5 / 5) - 0.5), ls(2 * (-6 / 3 + 4 / 2) - 0.5)]
    assert terms["preference"].values.tolist() == pytest.approx(expected)
    assert terms["gold"].weight == 1 and method.reward(LOGPS)[1] == -3.0


def test_against_a_slow_reference_and_dpo_without_a_reference():
    w, r = draws(2, 50)
    expected = [ls(0.2 * (a - b) - 0.3) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    assert tpo_loss(w, r, beta=0.2, gamma=0.3).tolist() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(tpo_loss(w, r, beta=0.2), dpo_loss(w, r, beta=0.2))
    torch.testing.assert_close(tpo_loss(w + 9, r + 9, beta=0.2), tpo_loss(w, r, beta=0.2))


def test_gradients_go_the_right_way_and_stay_finite():
    assert_gradcheck(lambda a, b: tpo_loss(a, b, beta=0.2, gamma=0.5), *draws(2, 6))
    down, up = gradients(lambda a, b: tpo_loss(a, b, beta=0.2, gamma=0.5), *draws(2, 20))
    assert (down < 0).all() and (up > 0).all()
    assert_finite_far_out(lambda a, b: tpo_loss(a, b, beta=0.2, gamma=0.5))


def test_only_the_likelihood_sees_the_gold_response():
    logps = LOGPS.logps.clone().requires_grad_()
    terms = made(TPO).terms(batch(), logps_of(logps, lengths=LOGPS.lengths.tolist()), {})
    (contrast,) = torch.autograd.grad(terms["preference"].values.sum(), logps)
    (gold,) = torch.autograd.grad(terms["gold"].values.sum(), logps)
    assert (contrast[0::3] == 0).all() and (contrast[1::3] < 0).all() and (contrast[2::3] > 0).all()
    assert gold.tolist() == [-1 / 4, 0, 0, -1, 0, 0]


def test_metrics_compare_chosen_with_rejected_alone():
    method = made(TPO, beta=0.5)
    method.update_metrics("val", batch(), LOGPS)
    seen = {name: float(x) for name, x in method.compute_metrics("val").items()}
    assert seen["rewards/accuracies"] == 0.5 and seen["logps/gold"] == -4.5
    assert (seen["rewards/chosen"], seen["rewards/rejected"], seen["rewards/margins"]) == (-2.25, -2.25, 0.0)
    assert (seen["logps/chosen"], seen["logps/rejected"]) == (-4.5, -4.5)


def triple(**fields: list) -> list[str] | None:
    (name, marks), *_ = fields.items()
    example = Example("x", tuple(Response(f"r{i}", **{name: mark}) for i, mark in enumerate(marks)))
    views = examples_of(TripleView(), example, 5)
    return [r.text for r in views[0].responses] if views else None


def test_gold_is_the_best_chosen_the_next_and_rejected_the_worst():
    assert triple(score=[1.0, 4.0, 2.0, 3.0]) == ["r1", "r3", "r0"]
    assert triple(rank=[0, 1, 2]) == ["r0", "r1", "r2"]
    assert triple(score=[5.0, 5.0, 1.0]) == ["r0", "r1", "r2"], "gold and chosen may tie"
    assert triple(score=[5.0, 1.0, 1.0]) is None, "chosen and rejected may not"
    assert triple(score=[5.0, 1.0]) is None
    assert triple(score=[None, None, None]) is None


def test_a_pair_that_was_cut_to_equal_tokens_contradicts():
    assert TripleView().contradicts(unit([5], [1, 2], [3, 2], [3, 2]))
    assert not TripleView().contradicts(unit([5], [3, 2], [3, 2], [1, 2])), "gold may be the chosen one"


def test_one_token_with_log_prob_near_0():
    logps = torch.tensor([-1e-9, -1e-9, -1e4], requires_grad=True)
    one = batch_of([unit([5], [1], [2], [3])], TripleView())
    for kind in (TPO, TPOL):
        terms = made(kind).terms(one, logps_of(logps, prompts=[0, 0, 0]), {})
        total = sum(t.weight * t.values.sum() for t in terms.values())
        assert math.isfinite(total.item()) and torch.autograd.grad(total, logps)[0].isfinite().all()
