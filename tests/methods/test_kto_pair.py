"""KTO-pair: the loss, and its reference points over a step."""

import math

import pytest
import torch
from attrs import evolve
from cases import Case
from losses import FIRST, SECOND, assert_finite_far_out, assert_gradcheck, draws, golden_rows, gradients, made
from tiny import arrange, batch_of, policy, units

from upo.data.batch import Step
from upo.data.views import PairedView
from upo.methods.kto_pair import KTOPair, kto_pair_loss
from upo.models.reference import FrozenReference

CASES = {KTOPair: Case(metrics={"kl/chosen", "kl/rejected"}, normaliser_cancels=False, defaults={"beta": 0.1})}


def loss(w, r, k_w=0.4, k_l=0.7):
    k_w, k_l = (torch.tensor(k, dtype=w.dtype) for k in (k_w, k_l))
    return kto_pair_loss(w, r, k_w, k_l, beta=0.1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


@pytest.mark.parametrize(("fixture", "golden"), [(FIRST, (0.462570, 0.365864)), (SECOND, (0.586618, 0.259225))])
def test_golden_values(fixture, golden):
    """Those of KTO's two sides with z0 = 0.5, averaged."""
    pi_w, ref_w, pi_l, ref_l = torch.tensor(fixture, dtype=torch.float64)[:, None]
    value = loss(pi_w - ref_w, pi_l - ref_l, 0.5, 0.5).item()
    assert value == pytest.approx(sum(golden) / 2, abs=5e-7)


def test_by_hand():
    """The chosen side has the REJECTED side's reference point: 0.1 (12 - 2) = 1, 0.1 (5 - -15) = 2."""
    value = loss(torch.tensor([12.0]), torch.tensor([-15.0]), k_w=5.0, k_l=2.0).item()
    assert value == pytest.approx((0.2689414 + 0.1192029) / 2)
    assert loss(torch.zeros(1), torch.zeros(1), 0.0, 0.0).item() == 0.5


def test_against_a_slow_reference():
    w, r = draws(2, 50)
    expected = [
        0.5 * (1 - sigmoid(0.1 * (a - 0.7)) + 1 - sigmoid(0.1 * (0.4 - b)))
        for a, b in zip(w.tolist(), r.tolist(), strict=True)
    ]
    assert loss(w, r).tolist() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(loss(w + 5, r + 5, 5.4, 5.7), loss(w, r))


def test_gradients():
    w, r = draws(2, 9)
    assert_gradcheck(loss, w, r)
    down, up = gradients(loss, w, r)
    assert (down < 0).all() and (up > 0).all()
    assert_finite_far_out(loss)
    assert_finite_far_out(lambda w, r: loss(w, r, 1e4, 1e4))


@pytest.fixture(scope="module")
def moved() -> KTOPair:
    """A policy that differs from its reference, so that both sides have a positive mean log-ratio."""
    made = KTOPair(policy(dtype="float64"), FrozenReference())
    made.configure_model()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in made.reference.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return made


WORK = units([(3, [9, 2]), (5, [1, 4]), (2, [4, 4]), (7, [2, 6])])


def step(*cuts: list, dummy: bool = False) -> Step:
    batches = [batch_of(cut, PairedView()) for cut in cuts]
    if dummy:
        batches.append(evolve(batch_of(WORK[:1], PairedView()), dummy=True))
    return Step(tuple(batches), {"prompts": 4, "responses": 8, "tokens": 32})


def test_reference_points_are_means_of_the_step_however_it_is_cut(moved):
    with torch.no_grad():
        logratio = moved.response_logps(arrange(WORK)).logratio
    expected = [max(0.0, logratio[i::2].mean().item()) for i in (0, 1)]
    assert min(expected) > 0.01
    for one in (step(WORK), step(WORK[:1], WORK[1:]), step(WORK[:3], WORK[3:], dummy=True)):
        got = moved.statistics(one)
        assert [got["kl/chosen"].item(), got["kl/rejected"].item()] == pytest.approx(expected, rel=1e-5)
        assert not any(x.requires_grad for x in got.values())


def test_gradient_of_the_loss_does_not_run_through_the_reference_points(moved):
    one = step(WORK)
    statistics = moved.statistics(one)
    parameters = list(moved.policy.parameters())
    ours = torch.autograd.grad(moved.loss_of(one.micro_batches[0], one, statistics, "val"), parameters)
    fixed = {name: torch.tensor(x.item()) for name, x in statistics.items()}
    other = torch.autograd.grad(moved.loss_of(one.micro_batches[0], one, fixed, "val"), parameters)
    for a, b in zip(ours, other, strict=True):
        torch.testing.assert_close(a, b)


def test_each_side_is_measured_from_the_others_reference_point():
    method = made(KTOPair)
    batch = batch_of(units([(2, [1, 1])]), PairedView())
    known = {"kl/chosen": torch.tensor(0.4), "kl/rejected": torch.tensor(0.7)}
    (value,) = method.terms(batch, golden_rows(FIRST), known)["preference"].values.tolist()
    r_w, r_l = FIRST[0] - FIRST[1], FIRST[2] - FIRST[3]
    expected = 0.5 * (1 - sigmoid(0.1 * (r_w - 0.7)) + 1 - sigmoid(0.1 * (0.4 - r_l)))
    assert value == pytest.approx(expected, rel=1e-6)
