"""RSO's hinge: SLiC's, normalised by the reference."""

import pytest
import torch
from cases import Case
from losses import FIRST, SECOND, assert_finite_far_out, assert_gradcheck, draws, golden_rows, gradients, made, total

from upo.methods.dpo import dpo_loss
from upo.methods.rso_hinge import RSOHinge, rso_hinge_loss
from upo.methods.slic_hf import slic_loss

CASES = {RSOHinge: Case(normaliser_cancels=True, defaults={"gamma": 0.05})}


@pytest.mark.parametrize("fixture", [FIRST, SECOND])
def test_golden_values(fixture):
    assert total(made(RSOHinge, gamma=0.1), golden_rows(fixture)).item() == pytest.approx(0.3, abs=1e-9)


def test_by_hand():
    """1 - 0.05 (4 + 6) = 0.5; a margin of 1 / gamma = 20 is enough."""
    w, r = torch.tensor([4.0, 10.0, 30.0]), torch.tensor([-6.0, -10.0, 0.0])
    assert rso_hinge_loss(w, r, gamma=0.05).tolist() == [0.5, 0, 0]


def test_against_a_slow_reference_and_other_losses():
    w, r = draws(2, 50)
    loss = rso_hinge_loss(w, r, gamma=0.1)
    assert loss.tolist() == pytest.approx(
        [max(0.0, 1 - 0.1 * (a - b)) for a, b in zip(w.tolist(), r.tolist(), strict=True)]
    )
    torch.testing.assert_close(rso_hinge_loss(w + 7, r + 7, gamma=0.1), loss)
    torch.testing.assert_close(loss, 0.1 * slic_loss(w, r, delta=10.0))
    assert (loss <= dpo_loss(w, r, beta=0.1) / torch.log(torch.tensor(2.0)) + 1e-9).logical_or(w < r).all()


def test_1_where_policy_is_reference_and_no_gradient_once_the_margin_is_met():
    zero = torch.zeros(2)
    assert rso_hinge_loss(zero, zero, gamma=0.3).tolist() == [1, 1]
    down, up = gradients(lambda a, b: rso_hinge_loss(a, b, gamma=0.1), torch.tensor([9.0, 11.0]), zero)
    assert down.tolist() == pytest.approx([-0.1, 0]) and up.tolist() == pytest.approx([0.1, 0])
    assert_gradcheck(lambda a, b: rso_hinge_loss(a, b, gamma=0.1), *draws(2, 6))
    assert_finite_far_out(lambda a, b: rso_hinge_loss(a, b, gamma=0.1))
