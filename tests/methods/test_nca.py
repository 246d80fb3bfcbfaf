"""NCA and InfoNCA on pairs and lists."""

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
    golden_pair,
    gradients,
    logps_of,
    made,
    minus_log_sigmoid,
)  # fmt: skip

from upo.methods.dpo import dpo_loss
from upo.methods.nca import NCA, InfoNCA, NCAListwise, info_nca_loss, nca_loss, nca_pair_loss

CASES = {
    NCA: Case(normaliser_cancels=False, defaults={"beta": 0.01}),
    InfoNCA: Case(
        options={"temperature": 1.0},
        source="tiny.scored_lists",
        normaliser_cancels=True,
        defaults={"beta": 0.01, "temperature": 1e-3},
    ),
    NCAListwise: Case(
        options={"temperature": 1.0},
        source="tiny.scored_lists",
        normaliser_cancels=False,
        defaults={"beta": 0.01, "temperature": 1e-3},
    ),
}

LISTS = pytest.mark.parametrize("listwise", [nca_loss, info_nca_loss])
HARD = torch.tensor([1.0, 0.0], dtype=torch.float64)
"""Scores that a temperature of 0.001 turns into a target of 1 and 0."""


def lists(listwise, rewards, scores, mask=None, temperature=1.0):
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    return listwise(rewards, scores, mask, temperature=temperature)


@pytest.mark.parametrize(("fixture", "golden"), [(FIRST, 1.234247), (SECOND, 1.288164)])
def test_golden_values(fixture, golden):
    assert made(NCA, beta=0.1).loss(*golden_pair(fixture)).item() == pytest.approx(golden, abs=5e-7)


def test_by_hand():
    """R = (1, 0), q = (3/4, 1/4)."""
    rewards = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    scores = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    one, minus = 0.3132617, 1.3132617  # -log sigmoid(1), -log sigmoid(-1)
    expected = 0.75 * one + 0.25 * math.log(2) + (minus + math.log(2)) / 2
    assert lists(nca_loss, rewards, scores).item() == pytest.approx(expected)
    assert lists(info_nca_loss, rewards, scores).item() == pytest.approx(0.75 * one + 0.25 * minus)
    pair = nca_pair_loss(torch.tensor([2.0]), torch.tensor([0.0]), beta=0.5)
    assert pair.item() == pytest.approx(one + minus / 2 + math.log(2) / 2)


def test_against_a_slow_reference():
    rewards, scores = draws(2, 20, 4, scale=2.0)
    for i in range(20):
        r, weights = rewards[i].tolist(), [math.exp(s / 0.7) for s in scores[i].tolist()]
        q = [w / sum(weights) for w in weights]
        total = math.log(sum(math.exp(x) for x in r))
        nca = sum(a * minus_log_sigmoid(x) + minus_log_sigmoid(-x) / 4 for a, x in zip(q, r, strict=True))
        info = sum(a * (total - x) for a, x in zip(q, r, strict=True))
        for listwise, expected in ((nca_loss, nca), (info_nca_loss, info)):
            got = lists(listwise, rewards, scores, temperature=0.7)[i].item()
            assert got == pytest.approx(expected, rel=1e-9)


def test_lists_of_two_with_hard_labels():
    w, r = draws(2, 50)
    rewards, scores = 0.1 * torch.stack([w, r], 1), HARD.expand(50, 2)
    torch.testing.assert_close(lists(info_nca_loss, rewards, scores, temperature=1e-3), dpo_loss(w, r, beta=0.1))
    torch.testing.assert_close(lists(nca_loss, rewards, scores, temperature=1e-3), nca_pair_loss(w, r, beta=0.1))


def test_only_infonca_is_invariant_to_a_shift():
    rewards, scores = draws(2, 20, 4, scale=2.0)
    torch.testing.assert_close(lists(info_nca_loss, rewards + 5, scores), lists(info_nca_loss, rewards, scores))
    assert not torch.isclose(lists(nca_loss, rewards + 5, scores), lists(nca_loss, rewards, scores)).any()


def test_where_policy_is_reference():
    zero = torch.zeros(2, dtype=torch.float64)
    assert nca_pair_loss(zero, zero, beta=1.0).tolist() == pytest.approx([2 * math.log(2)] * 2)
    down, up = gradients(lambda w, r: nca_pair_loss(w, r, beta=1.0), zero, zero)
    assert down.tolist() == [-0.25] * 2 and up.tolist() == [0.25] * 2
    rewards, scores = torch.zeros(1, 5, dtype=torch.float64), draws(1, 5)
    assert lists(nca_loss, rewards, scores).item() == pytest.approx(2 * math.log(2))
    assert lists(info_nca_loss, rewards, scores).item() == pytest.approx(math.log(5))


def test_the_best_reward_of_a_chosen_response_is_log_2():
    best = torch.tensor([math.log(2)], dtype=torch.float64)
    assert gradients(lambda w: nca_pair_loss(w, best, beta=1.0), best)[0].item() == pytest.approx(0, abs=1e-12)


@LISTS
def test_what_the_mask_hides_has_neither_weight_nor_gradient(listwise):
    """The mean over K is over the responses that are there."""
    rewards, scores = draws(2, 2, 3, scale=2.0)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    ours = lists(listwise, rewards, scores, mask)
    torch.testing.assert_close(ours[:1], lists(listwise, rewards[:1, :2], scores[:1, :2]))
    torch.testing.assert_close(ours[1:], lists(listwise, rewards[1:], scores[1:]))
    (gradient,) = gradients(lambda x: lists(listwise, x, scores, mask), rewards)
    assert gradient[0, 2] == 0 and (gradient.abs() > 0).sum() == 5
    assert_gradcheck(lambda x: lists(listwise, x, scores, mask), rewards)


@LISTS
def test_lists_far_out(listwise):
    for scores in ([0.0, 0.0], [1.0, 5.0], [10.0, 1.0]):
        assert_finite_far_out(
            lambda w, r, s=scores: lists(
                listwise, torch.stack([w, r], 1), torch.tensor(s).expand(len(w), 2), temperature=1e-3
            )
        )


def test_gradients_of_pairs():
    w, r = draws(2, 9)
    assert_gradcheck(lambda w, r: nca_pair_loss(w, r, beta=0.1), w, r)
    down, up = gradients(lambda w, r: nca_pair_loss(w, r, beta=0.1), w, r)
    assert torch.equal(down < 0, 0.1 * w < math.log(2)) and (up > 0).all()
    assert_finite_far_out(lambda w, r: nca_pair_loss(w, r, beta=0.1))


@pytest.mark.parametrize(("kind", "function"), [(NCAListwise, nca_loss), (InfoNCA, info_nca_loss)])
def test_the_classes_score_lists_by_beta_times_log_ratio(kind, function):
    responses = logps_of([-3.0, -5.0], reference=[-4.0, -4.0])[torch.tensor([[0, 1]])]
    scores = torch.tensor([[4.0, 0.0]], dtype=torch.float64)
    value = made(kind, beta=0.5, temperature=2.0).loss(responses, scores, scores >= 0)
    expected = lists(function, torch.tensor([[0.5, -0.5]], dtype=torch.float64), scores, temperature=2.0)
    torch.testing.assert_close(value, expected)
