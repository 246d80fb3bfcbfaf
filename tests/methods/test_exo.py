"""EXO on pairs and on lists."""

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
)  # fmt: skip

from upo.methods.exo import EXO, EXOListwise, exo_listwise_loss, exo_loss

CASES = {
    EXO: Case(normaliser_cancels=True, defaults={"beta": 0.5, "eps": 1e-3}),
    EXOListwise: Case(
        options={"temperature": 1.0},  # that all couples of a list learn, not only those with the best response
        source="tiny.scored_lists",
        normaliser_cancels=True,
        defaults={"beta": 0.1, "temperature": 0.1},
    ),
}

EPS = 1e-3
MASK = torch.tensor([[True, True, False], [True, True, True]])


def loss(w, r, eps=EPS):
    return exo_loss(w, r, beta=0.1, eps=eps)


def listwise(rewards, scores, mask=None, temperature=1.0):
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    return exo_listwise_loss(rewards, scores, mask, temperature=temperature)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(x: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in x)
    return [math.exp(v) / total for v in x]


@pytest.mark.parametrize("fixture", [FIRST, SECOND])
def test_golden_values(fixture):
    assert made(EXO, beta=0.1).loss(*golden_pair(fixture)).item() == pytest.approx(1.657292, abs=5e-7)


def test_by_hand():
    """KL of [1/2, 1/2] to [3/4, 1/4] is log 2 / sqrt 3; the same as a list with scores log 3 and 0."""
    zero = torch.zeros(1, dtype=torch.float64)
    assert loss(zero, zero, 0.25).item() == pytest.approx(0.1438410)
    scores = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    assert listwise(torch.zeros(1, 2, dtype=torch.float64), scores).item() == pytest.approx(0.1438410)


def test_against_a_slow_reference():
    w, r = draws(2, 50)
    pairs = zip((0.1 * w).tolist(), (0.1 * r).tolist(), strict=True)
    assert loss(w, r).tolist() == pytest.approx([kl(softmax([a, b]), [1 - EPS, EPS]) for a, b in pairs], rel=1e-9)
    rewards, scores = draws(2, 20, 4, scale=2.0)
    expected = [
        kl(softmax(a), softmax([s / 0.7 for s in b])) for a, b in zip(rewards.tolist(), scores.tolist(), strict=True)
    ]
    assert listwise(rewards, scores, temperature=0.7).tolist() == pytest.approx(expected, rel=1e-9)


def test_a_list_of_two_is_a_pair():
    w, r = draws(2, 50)
    target = torch.tensor([math.log(1 - EPS), math.log(EPS)], dtype=torch.float64).expand(50, 2)
    torch.testing.assert_close(listwise(0.1 * torch.stack([w, r], 1), target), loss(w, r))


def test_never_negative_and_zero_at_the_target():
    w, r = draws(2, 50)
    assert (loss(w, r) >= 0).all()
    z = torch.tensor([10 * math.log((1 - EPS) / EPS)], dtype=torch.float64)
    assert loss(z, torch.zeros_like(z)).item() == pytest.approx(0, abs=1e-12)
    rewards = draws(5, 3)
    assert listwise(rewards, 0.3 * rewards + 7, temperature=0.3).tolist() == pytest.approx([0] * 5, abs=1e-12)


def test_gradient_in_closed_form_vanishes_where_wrong_with_confidence():
    z = torch.linspace(-60, 60, 25, dtype=torch.float64)
    (slope,) = gradients(lambda x: exo_loss(x, torch.zeros_like(x), beta=1.0, eps=EPS), z)
    expected = z.sigmoid() * (-z).sigmoid() * (z - math.log((1 - EPS) / EPS))
    torch.testing.assert_close(slope, expected, atol=1e-12, rtol=1e-9)
    assert abs(slope[0]) < 1e-20


def test_what_the_mask_hides_has_neither_weight_nor_gradient():
    rewards, scores = draws(2, 2, 3, scale=2.0)
    ours = listwise(rewards, scores, MASK)
    torch.testing.assert_close(ours[:1], listwise(rewards[:1, :2], scores[:1, :2]))
    torch.testing.assert_close(ours[1:], listwise(rewards[1:], scores[1:]))
    (gradient,) = gradients(lambda x: listwise(x, scores, MASK), rewards)
    assert gradient[0, 2] == 0 and (gradient.abs() > 0).sum() == 5
    assert_gradcheck(lambda x: listwise(x, scores, MASK), rewards)


def test_gradients():
    w, r = draws(2, 9)
    assert_gradcheck(loss, w, r)
    down, up = gradients(loss, w, r)
    assert (down < 0).all()
    torch.testing.assert_close(up, -down)
    assert_finite_far_out(loss)
    for scores in ([[0.0, 0.0]], [[1.0, 5.0]], [[5.0, 1.0]]):
        assert_finite_far_out(
            lambda w, r, s=scores: listwise(torch.stack([w, r], 1), torch.tensor(s).expand(len(w), 2), temperature=1e-3)
        )


def test_the_class_scores_lists_by_beta_times_log_ratio():
    responses = logps_of([-3.0, -5.0], reference=[-4.0, -4.0])[torch.tensor([[0, 1]])]
    value = made(EXOListwise, beta=0.5, temperature=2.0).loss(
        responses, torch.tensor([[4.0, 0.0]]).double(), MASK[:1, :2]
    )
    assert value.item() == pytest.approx(kl(softmax([0.5, -0.5]), softmax([2.0, 0.0])))
