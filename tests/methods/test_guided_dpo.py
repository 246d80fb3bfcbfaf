"""Guided DPO: DPO on the pair, likelihood of the gold response."""

import pytest
import torch
from losses import FIRST, SECOND, assert_finite_far_out, golden_pair, logps_of, made
from tiny import batch_of, units

from upo.methods.dpo import DPO
from upo.methods.guided_dpo import GuidedDPO
from upo.methods.tpo_triple import TripleView


@pytest.mark.parametrize("fixture", [FIRST, SECOND])
def test_the_pair_is_dpos(fixture):
    assert made(GuidedDPO).loss(*golden_pair(fixture)).item() == pytest.approx(0.403186, abs=5e-7)
    assert made(GuidedDPO).loss(*golden_pair(fixture)).item() == made(DPO).loss(*golden_pair(fixture)).item()


def test_by_hand():
    """Gold, chosen, rejected: -0.1 * -6 / 3 a token, and z = 0.5 (1 + 1) = 1."""
    method = made(GuidedDPO, beta=0.5)
    rows = logps_of([-6.0, -6.0, -8.0], reference=[-9.0, -7.0, -7.0], lengths=[3, 2, 2], prompts=[0, 0, 0])
    terms = method.terms(batch_of(units([(2, [3, 2, 2])]), TripleView()), rows, {})
    assert terms["preference"].values.item() == pytest.approx(0.3132617)
    assert terms["gold"].weight * terms["gold"].values.item() == pytest.approx(0.2)
    assert method.reward(rows).tolist() == [1.5, 0.5, -0.5]


def test_finite_far_out():
    zero = torch.zeros(16)
    assert_finite_far_out(lambda w, r: made(GuidedDPO).loss(logps_of(w, reference=zero), logps_of(r, reference=zero)))
