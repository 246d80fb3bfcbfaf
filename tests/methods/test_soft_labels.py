"""Pairs with soft labels, soft cDPO and soft cIPO."""

import math
from collections import Counter

import pytest
import torch
from attrs import evolve
from cases import Case
from losses import assert_finite_far_out, assert_gradcheck, draws, logps_of, made, minus_log_sigmoid
from tiny import batch_of, examples_of, unit

from upo.data.example import Example, Response
from upo.data.report import DataReport
from upo.data.source import Source
from upo.data.units import Unit
from upo.methods.dpo import dpo_loss
from upo.methods.soft_labels import SoftCDPO, SoftCIPO, SoftPairedView, soft_cdpo_loss, soft_cipo_loss

CASES = {
    SoftCDPO: Case(source="tiny.soft_pairs", normaliser_cancels=True, defaults={"beta": 0.1}),
    SoftCIPO: Case(source="tiny.soft_pairs", normaliser_cancels=True, defaults={"tau": 0.1}),
}

W, R = draws(2, 40)
P = 0.5 + 0.5 * torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
GOLD = torch.tensor([[2.0], [-5.0], [-3.0], [-10.0]], dtype=torch.float64)


def p_of(value: float, like: torch.Tensor = GOLD[0]) -> torch.Tensor:
    return torch.full_like(like, value)


@pytest.mark.parametrize("rows", [(0, 1), (2, 3)])
def test_golden_values(rows):
    """cDPO with eps = .2 and IPO with tau = .1, in both fixtures."""
    w, r = (GOLD[i] for i in rows)
    assert soft_cdpo_loss(w, r, p_of(0.8), beta=0.1).item() == pytest.approx(0.543186, abs=5e-7)
    assert soft_cipo_loss(w, r, p_of(1.0), tau=0.1).item() == pytest.approx(4.0)


def test_by_hand():
    """z = 1: .3132617 + (1 - p) z; margin 2, target .5 * 5 = 2.5."""
    w, r = torch.tensor([4.0]), torch.tensor([2.0])
    assert soft_cdpo_loss(w, r, torch.tensor([0.75]), beta=0.5).item() == pytest.approx(0.5632617)
    assert soft_cipo_loss(w, r, torch.tensor([0.75]), tau=0.1).item() == pytest.approx(0.25)


def test_against_a_slow_reference():
    rows = list(zip(W.tolist(), R.tolist(), P.tolist(), strict=True))
    dpo = [p * minus_log_sigmoid(0.1 * (w - r)) + (1 - p) * minus_log_sigmoid(0.1 * (r - w)) for w, r, p in rows]
    ipo = [((w - r) - (p - 0.5) / 0.3) ** 2 for w, r, p in rows]
    assert soft_cdpo_loss(W, R, P, beta=0.1).tolist() == pytest.approx(dpo, rel=1e-12)
    assert soft_cipo_loss(W, R, P, tau=0.3).tolist() == pytest.approx(ipo, rel=1e-10)


def test_certain_labels_give_dpo_and_constant_ones_cdpo():
    torch.testing.assert_close(soft_cdpo_loss(W, R, p_of(1, W), beta=0.1), dpo_loss(W, R, beta=0.1))
    smoothed = dpo_loss(W, R, beta=0.1, label_smoothing=0.3)
    torch.testing.assert_close(soft_cdpo_loss(W, R, p_of(0.7, W), beta=0.1), smoothed)


@pytest.mark.parametrize(("loss", "options"), [(soft_cdpo_loss, {"beta": 0.1}), (soft_cipo_loss, {"tau": 0.1})])
def test_the_order_of_a_pair_is_a_convention(loss, options):
    torch.testing.assert_close(loss(W, R, P, **options), loss(R, W, 1 - P, **options))
    torch.testing.assert_close(loss(W + 7, R + 7, P, **options), loss(W, R, P, **options))


@pytest.mark.parametrize("p", [0.6, 0.9])
def test_the_minimum_lies_where_the_model_says_p(p):
    """Beyond it the margin is pulled back: what geometric averaging never does."""
    zero = torch.zeros(1, dtype=torch.float64)
    for loss, options, best in (
        (soft_cdpo_loss, {"beta": 0.1}, math.log(p / (1 - p)) / 0.1),
        (soft_cipo_loss, {"tau": 0.1}, (2 * p - 1) / 0.2),
    ):
        margin = (best + torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)).requires_grad_()
        value = loss(margin, zero.expand(3), p_of(p, margin.detach()), **options)
        slopes = torch.autograd.grad(value.sum(), margin)[0].tolist()
        assert slopes[0] < 0 < slopes[2] and slopes[1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("loss", "options"), [(soft_cdpo_loss, {"beta": 0.1}), (soft_cipo_loss, {"tau": 0.1})])
def test_gradcheck_and_finite_far_out(loss, options):
    assert_gradcheck(lambda w, r: loss(w, r, P[:9], **options), W[:9], R[:9])
    for p in (0.5, 0.8, 1.0):
        assert_finite_far_out(lambda w, r, p=p: loss(w, r, p_of(p, w), **options))


# ---- the batch -----------------------------------------------------------------------------------------------------


def example(soft_label: float | None, n: int = 2) -> Example:
    return Example("p", tuple(Response(str(i), rank=i) for i in range(n)), soft_label=soft_label)


def test_the_likelier_response_comes_first():
    (same,) = examples_of(SoftPairedView(), example(0.9), 5)
    assert [r.text for r in same.responses] == ["0", "1"] and same.soft_label == 0.9
    (turned,) = examples_of(SoftPairedView(), example(0.25), 5)
    assert [r.text for r in turned.responses] == ["1", "0"] and turned.soft_label == 0.75
    (even,) = examples_of(SoftPairedView(), example(0.5), 5)
    assert [r.text for r in even.responses] == ["0", "1"]


def test_what_has_no_soft_label_is_no_unit():
    assert examples_of(SoftPairedView(), example(None), 5) == []
    assert examples_of(SoftPairedView(), example(0.9, n=3), 5) == []
    with pytest.raises(ValueError, match="probability"):
        examples_of(SoftPairedView(), example(66.0), 5)


def test_labels_reach_the_loss_in_the_order_of_the_pairs():
    units = [unit([3], [4, 5], [6]), unit([7, 8], [9], [10])]
    units = [
        Unit.of(u.prompt, u.responses, evolve(u.example, soft_label=p)) for u, p in zip(units, (0.6, 1.0), strict=True)
    ]
    batch = batch_of(units, SoftPairedView())
    assert batch.to("cpu")["soft_labels"].tolist() == pytest.approx([0.6, 0.4, 1.0, 0.0])
    logps = logps_of([-4.0, -6.0, -3.0, -9.0], reference=[-5.0, -5.0, -5.0, -5.0], prompts=[0, 0, 1, 1])
    for kind, loss, options in ((SoftCDPO, soft_cdpo_loss, {"beta": 0.2}), (SoftCIPO, soft_cipo_loss, {"tau": 0.2})):
        (term,) = made(kind, **options).terms(batch, logps, {}).values()
        ratio = logps.logratio
        expected = loss(ratio[0::2], ratio[1::2], torch.tensor([0.6, 1.0], dtype=torch.float64), **options)
        torch.testing.assert_close(term.values, expected, rtol=1e-6, atol=1e-6)


def test_votes_of_three_annotators_on_real_pairs(shared):
    """PandaLM: 3:0, 2:0 with a tie, 2:1; the source leaves ties of the majority out."""
    examples = Source("pandalm", path=str(shared / "data/pairs/pandalm_testset_v1.jsonl.gz")).examples(DataReport())
    views = [view for example in examples for view in examples_of(SoftPairedView(), example, 5)]
    assert Counter(round(6 * view.soft_label) for view in views) == {6: 429, 5: 17, 4: 33}
