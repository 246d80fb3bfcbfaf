"""GDPO, GIPO, GROPO."""

import pytest
import torch
from cases import Case
from losses import assert_finite_far_out, assert_gradcheck, draws, gradients, minus_log_sigmoid

from upo.methods.dpo import dpo_loss
from upo.methods.geometric import GDPO, GIPO, GROPO, averaged_margin, gdpo_loss, gipo_loss, gropo_loss

CASES = {
    GDPO: Case(source="tiny.soft_pairs", normaliser_cancels=True, defaults={"beta": 0.1}),
    GIPO: Case(source="tiny.soft_pairs", normaliser_cancels=True, defaults={"tau": 0.1}),
    GROPO: Case(source="tiny.soft_pairs", normaliser_cancels=True, defaults={"beta": 0.1, "alpha": 14.0}),
}

W, R = draws(2, 40)
P = 0.5 + 0.5 * torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gdpo(w, r, p, beta=0.1):
    return gdpo_loss(averaged_margin(w, r, p), beta=beta)


def gipo(w, r, p, tau=0.1):
    return gipo_loss(averaged_margin(w, r, p), tau=tau)


def gropo(w, r, p, beta=0.1, alpha=14.0):
    return gropo_loss(averaged_margin(w, r, p), beta=beta, alpha=alpha)


ALL = [gdpo, gipo, gropo]


def p_of(value: float, like: torch.Tensor = W) -> torch.Tensor:
    return torch.full_like(like, value)


@pytest.mark.parametrize("logratios", [(2.0, -5.0), (-3.0, -10.0)])
@pytest.mark.parametrize(("loss", "p", "golden"), [(gdpo, 0.75, 0.533382), (gipo, 0.75, 2.25), (gropo, 1.0, 1.256530)])
def test_golden_values(loss, p, golden, logratios):
    w, r = torch.tensor(logratios, dtype=torch.float64)[:, None]
    assert loss(w, r, p_of(p, w)).item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """p = .75, margin 4: averaged 2, z = 1; gipo (2 - 5)^2; gropo with a = 1: .3132617 + .2689414."""
    w, r, p = torch.tensor([5.0]), torch.tensor([1.0]), torch.tensor([0.75])
    assert averaged_margin(w, r, p).item() == 2
    assert gdpo(w, r, p, beta=0.5).item() == pytest.approx(0.3132617)
    assert gipo(w, r, p).item() == 9
    assert gropo(w, r, p, beta=0.5, alpha=1.0).item() == pytest.approx(0.5822031)


def test_against_a_slow_reference_with_written_out_geometric_means():
    """log of policy(w)^p policy(l)^(1-p) and its mirror image, under policy and reference."""
    pi_w, pi_l, ref_w, ref_l = (-100 + draws(4, 20, seed=3)).tolist()
    for a, b, c, d, p in zip(pi_w, pi_l, ref_w, ref_l, P.tolist(), strict=False):
        ours, theirs = p * a + (1 - p) * b, p * b + (1 - p) * a
        z = (ours - (p * c + (1 - p) * d)) - (theirs - (p * d + (1 - p) * c))
        w, r, label = (torch.tensor([x], dtype=torch.float64) for x in (a - c, b - d, p))
        assert gdpo(w, r, label).item() == pytest.approx(minus_log_sigmoid(0.1 * z), rel=1e-9)
        assert gipo(w, r, label).item() == pytest.approx((z - 5) ** 2, rel=1e-9, abs=1e-9)
        flat = 1 / (1 + torch.tensor(0.1 * z).exp().item())
        expected = 56 / 225 * minus_log_sigmoid(0.1 * z) + 784 / 225 * flat
        assert gropo(w, r, label).item() == pytest.approx(expected, rel=1e-6)


def test_certain_labels_give_the_base_losses():
    torch.testing.assert_close(gdpo(W, R, p_of(1)), dpo_loss(W, R, beta=0.1))
    torch.testing.assert_close(gipo(W, R, p_of(1)), (W - R - 5) ** 2)


def test_a_label_is_a_smaller_beta():
    for p in (0.6, 0.9):
        torch.testing.assert_close(gdpo(W, R, p_of(p)), dpo_loss(W, R, beta=0.1 * (2 * p - 1)))


@pytest.mark.parametrize("loss", ALL)
def test_even_votes_have_no_gradient_and_the_order_is_a_convention(loss):
    for gradient in gradients(lambda w, r: loss(w, r, p_of(0.5)), W, R):
        assert (gradient == 0).all()
    assert loss(W, R, p_of(0.5)).unique().numel() == 1
    torch.testing.assert_close(loss(W, R, P), loss(R, W, 1 - P))
    torch.testing.assert_close(loss(W + 9, R + 9, P), loss(W, R, P))


@pytest.mark.parametrize("loss", ALL)
def test_gradcheck_and_signs(loss):
    assert_gradcheck(lambda w, r: loss(w, r, P[:9]), W[:9], R[:9])
    down, up = gradients(lambda w, r: loss(w, r, P), W, R)
    if loss is gipo:  # beyond its target a margin is pulled back
        short = averaged_margin(W, R, P) < 5
        assert ((down < 0) == short).all() and ((up > 0) == short).all()
    else:
        assert (down < 0).all() and (up > 0).all()


def test_less_certain_labels_pull_less():
    """At the start, where margins are 0."""
    zero = torch.zeros(1, dtype=torch.float64)
    for loss in ALL:
        pulls = [gradients(lambda w: loss(w, zero, p_of(p, zero)), zero)[0].item() for p in (1.0, 0.8, 0.6, 0.5)]  # noqa: B023
        assert pulls == sorted(pulls) and pulls[-1] == 0 > pulls[-2]


def test_the_bounded_term_dominates_ropo_on_the_wrong_side():
    """Far on the wrong side the sigmoid is flat: only the small logistic slope is left."""
    zero = torch.zeros(1, dtype=torch.float64)
    (far,) = gradients(lambda w: gropo(w, zero, p_of(1, zero)), zero - 500)
    assert far.item() == pytest.approx(-0.1 * 56 / 225, rel=1e-6)


@pytest.mark.parametrize("p", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("loss", ALL)
def test_finite_far_out(loss, p):
    assert_finite_far_out(lambda w, r: loss(w, r, p_of(p, w)))
