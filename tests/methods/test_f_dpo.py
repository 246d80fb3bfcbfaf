"""f-DPO and its divergences."""

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

from upo.functional.divergences import Alpha, Divergence, ForwardKL, JensenShannon, ReverseKL
from upo.methods.dpo import dpo_loss
from upo.methods.f_dpo import FDPO, f_dpo_loss

CASES = {FDPO: Case(normaliser_cancels=False, defaults={"beta": 0.1, "divergence": JensenShannon})}

SLOW = [
    (ReverseKL(), lambda u: math.log(u) + 1),
    (ForwardKL(), lambda u: -1 / u),
    (JensenShannon(), lambda u: math.log(2 * u / (1 + u))),
    (Alpha(0.3), lambda u: (1 - u**-0.3) / 0.3),
]
"""f'(u) of each as the paper writes it; constants cancel."""
EACH = [pytest.param(d, id=type(d).__name__) for d, _ in SLOW]


@pytest.mark.parametrize(
    ("divergence", "first", "second"),
    [
        (ReverseKL(), 0.403186, 0.403186),
        (ForwardKL(), 0.0, 0.0),
        (JensenShannon(), 0.478632, 0.404799),
        (Alpha(0.5), 0.089973, 0.0),
    ],
)
def test_golden_values(divergence, first, second):
    method = made(FDPO, divergence=divergence)
    assert method.loss(*golden_pair(FIRST)).item() == pytest.approx(first, abs=5e-7)
    assert method.loss(*golden_pair(SECOND)).item() == pytest.approx(second, abs=5e-7)


def test_golden_value_of_the_forward_kl_in_full():
    """0.1 (exp(5) - exp(-2)) = 14.8278."""
    value = made(FDPO, divergence=ForwardKL()).loss(*golden_pair(FIRST)).item()
    assert value == pytest.approx(3.634e-7, rel=1e-3)


@pytest.mark.parametrize(("divergence", "score"), SLOW, ids=lambda x: type(x).__name__)
def test_against_a_slow_reference(divergence, score):
    w, r = draws(2, 50, scale=3.0)
    expected = [
        minus_log_sigmoid(0.1 * (score(math.exp(a)) - score(math.exp(b))))
        for a, b in zip(w.tolist(), r.tolist(), strict=True)
    ]
    assert f_dpo_loss(w, r, beta=0.1, divergence=divergence).tolist() == pytest.approx(expected, rel=1e-9)


def test_limits():
    w, r = draws(2, 50, scale=3.0)
    torch.testing.assert_close(f_dpo_loss(w, r, beta=0.1, divergence=ReverseKL()), dpo_loss(w, r, beta=0.1))
    torch.testing.assert_close(Alpha(1e-7)(w), w, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(Alpha(1 - 1e-9)(w), 1 + ForwardKL()(w))
    assert (JensenShannon()(10 * w) <= math.log(2)).all()


@pytest.mark.parametrize(("divergence", "slope"), [(d, s) for (d, _), s in zip(SLOW, (1, 1, 0.5, 1), strict=True)])
def test_all_are_dpo_to_first_order_up_to_scale(divergence, slope):
    assert gradients(divergence, torch.zeros(1))[0].item() == pytest.approx(slope)


@pytest.mark.parametrize("divergence", EACH)
def test_gradients(divergence: Divergence):
    w, r = draws(2, 9, scale=2.0)

    def loss(w, r):
        return f_dpo_loss(w, r, beta=0.1, divergence=divergence)

    assert_gradcheck(loss, w, r)
    down, up = gradients(loss, w, r)
    assert (down < 0).all() and (up > 0).all()
    assert_finite_far_out(loss)


@pytest.mark.parametrize("divergence", EACH)
def test_a_pair_of_very_unlikely_responses_is_no_nan(divergence):
    """Without the cap both scores are infinite at r = -95 in float32."""
    far = torch.tensor([-95.0])
    assert f_dpo_loss(far, far - 1, beta=0.1, divergence=divergence).isfinite().all()


def test_the_reward_is_the_score():
    logps = logps_of([-1.0], reference=[-3.0])
    assert made(FDPO, divergence=ForwardKL()).reward(logps).item() == pytest.approx(-0.1 * math.exp(-2))
