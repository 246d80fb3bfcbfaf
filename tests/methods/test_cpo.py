"""CPO: a contrast without a reference, and the likelihood of the chosen response as a term of its own."""

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
from tiny import batch_of, units

from upo.data.views import PairedView
from upo.methods.cpo import CPO, cpo_loss
from upo.methods.dpo import DPO, dpo_loss

CASES = {CPO: Case(defaults={"beta": 0.1, "alpha": 1.0, "nll_per_token": True})}


@pytest.mark.parametrize(("fixture", "golden"), [(FIRST, 40.201413), (SECOND, 45.201413)])
def test_golden_values(fixture, golden):
    assert total(made(CPO, nll_per_token=False), golden_rows(fixture)).item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """0.5 (-6 + 8) = 1; 6 nats over 3 tokens."""
    rows = logps_of([-6.0, -8.0], lengths=[3, 2], prompts=[0, 0])
    assert total(made(CPO, beta=0.5, alpha=0.1), rows).item() == pytest.approx(0.3132617 + 0.2)
    assert total(made(CPO, beta=0.5, alpha=0.1, nll_per_token=False), rows).item() == pytest.approx(0.3132617 + 0.6)
    assert made(CPO, beta=0.5).reward(rows).tolist() == [-3, -4]


def test_against_a_slow_reference():
    w, r = draws(2, 50)
    expected = [ls(0.1 * (a - b)) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    assert cpo_loss(w, r, beta=0.1).tolist() == pytest.approx(expected, rel=1e-12)


def test_without_likelihood_it_is_dpo_with_a_reference_that_has_no_preference():
    logps = draws(10)
    prompts = [i // 2 for i in range(10)]
    rows = logps_of(logps, reference=[float(-p) for p in prompts], prompts=prompts)
    torch.testing.assert_close(total(made(CPO, alpha=0.0), rows), total(made(DPO), rows))
    torch.testing.assert_close(cpo_loss(logps[:5], logps[5:], beta=0.1), dpo_loss(logps[:5], logps[5:], beta=0.1))


def test_terms_are_logged_without_their_weights_and_averaged_over_pairs():
    """Means over pairs of the global step: a token mean of a micro-batch would depend on how the step is cut."""
    rows = logps_of([-6.0, -8.0, -30.0, -9.0], lengths=[3, 2, 10, 3], prompts=[0, 0, 1, 1])
    terms = made(CPO, alpha=0.3).terms(batch_of(units([(2, [3, 2]), (2, [10, 3])]), PairedView()), rows, {})
    assert list(terms) == ["preference", "nll"] and terms["nll"].values.tolist() == [2, 3]
    assert [t.weight for t in terms.values()] == [1, 0.3] and {t.mean_over for t in terms.values()} == {"prompts"}
    assert {"loss/preference", "loss/nll"} <= set(made(CPO).logged_names)


def test_gradients():
    assert_gradcheck(lambda w, r: cpo_loss(w, r, beta=0.1), *draws(2, 6))
    down, up = gradients(lambda w, r: cpo_loss(w, r, beta=0.1), *draws(2, 20))
    assert (down < 0).all() and (up > 0).all()
    assert_finite_far_out(lambda w, r: cpo_loss(w, r, beta=0.1))
