"""MODPO: golden value, limits, its optimum, and why its margin never turns a gradient."""

import math

import pytest
import torch
from attrs import evolve
from cases import Case
from losses import assert_finite_far_out, assert_gradcheck, draws, golden_rows, gradients, made, total, values

from upo.methods.dpo import dpo_loss
from upo.methods.modpo import MODPO, modpo_loss

CASES = {
    MODPO: Case(
        options={"reward_weights": {"length": 0.02}},
        metrics={f"preference_rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")},
        normaliser_cancels=True,
        defaults={"beta": 0.1},
    )
}

PAIR = (-40.0, -42.0, -55.0, -50.0)
"""Policy and reference of chosen, of rejected: D = 7."""


def numbers(*xs: float) -> list[torch.Tensor]:
    return [torch.tensor([x], dtype=torch.float64) for x in xs]


def test_golden_value():
    """rho = (.4, -.3), beta = .1, w_0 = w_1 = .5, rewards .9 apart: z = (.07 - .45) / .5."""
    loss = modpo_loss(*numbers(0.4, -0.3, 0.45), beta=0.1, preference_weight=0.5)
    assert values(loss) == pytest.approx([1.1436736748144938], rel=1e-12)


def test_with_weight_1_and_no_margin_it_is_dpo():
    w, r = draws(2, 50)
    expected = dpo_loss(w, r, beta=0.3)
    torch.testing.assert_close(modpo_loss(w, r, torch.zeros_like(w), beta=0.3, preference_weight=1.0), expected)


def test_a_margin_is_as_good_as_a_difference_of_log_ratios():
    w, r, m = draws(3, 50)
    expected = dpo_loss(w - m / 0.3, r, beta=0.3 / 0.2)
    torch.testing.assert_close(modpo_loss(w, r, m, beta=0.3, preference_weight=0.2), expected)


@pytest.mark.parametrize("preference_weight", [0.05, 0.5, 1.0])
def test_the_margin_changes_the_size_of_the_push_and_never_its_sign(preference_weight):
    margin = torch.linspace(-2, 2, 41, dtype=torch.float64)
    zero = torch.zeros_like(margin)
    (slope,) = gradients(
        lambda w: modpo_loss(w, zero, margin, beta=0.1, preference_weight=preference_weight), zero
    )  # fmt: skip
    assert (slope < 0).all() and (slope.diff() <= 0).all(), "pushed up, the harder the better the chosen one's rewards"
    expected = [-0.1 / preference_weight / (1 + math.exp(-m / preference_weight)) for m in margin.tolist()]
    assert values(slope) == pytest.approx(expected, rel=1e-9)


def test_where_rewards_contradict_the_label_the_push_all_but_vanishes():
    """w_0 = .05 and m = -.5 leave a factor of 4.5e-5 (and not a push the other way)."""
    (slope,) = gradients(lambda w: modpo_loss(w, *numbers(0.0, -0.5), beta=0.1, preference_weight=0.05), *numbers(0.0))
    assert slope.item() == pytest.approx(-0.1 / 0.05 / (1 + math.exp(10)))
    assert 4e-5 < 1 / (1 + math.exp(10)) < 5e-5


def test_with_noisy_labels_the_optimum_is_exact():
    """Three responses, labels as Bradley-Terry says: reference * exp((w_0 r_0 + w_1 r_1) / beta) is stationary."""
    beta, w0, w1 = 0.1, 0.3, 0.7
    users, designers = torch.tensor([0.2, -0.5, 1.0]).double(), torch.tensor([0.9, 0.1, -0.4]).double()
    optimum = (w0 * users + w1 * designers) / beta  # log-ratio up to a constant

    def expected_loss(rho):
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                if i != j:
                    often = torch.sigmoid(users[i] - users[j])
                    margin = (w1 * (designers[i] - designers[j]))[None]
                    loss = loss + often * modpo_loss(
                        rho[i, None], rho[j, None], margin, beta=beta, preference_weight=w0
                    )
        return loss

    assert values(gradients(expected_loss, optimum)[0]) == pytest.approx([0, 0, 0], abs=1e-12)
    assert gradients(expected_loss, optimum + torch.tensor([0.5, 0, 0]))[0][0] > 1e-3
    assert gradients(expected_loss, torch.zeros(3).double())[0].abs().max() > 1e-2


def test_gradcheck_and_finite_far_out():
    w, r, m = draws(3, 8, scale=2.0)
    assert_gradcheck(lambda a, b: modpo_loss(a, b, m, beta=0.1, preference_weight=0.5), w, r)
    for margin in (-1e4, 0.0, 1e4):
        assert_finite_far_out(
            lambda a, b, m=margin: modpo_loss(a, b, torch.full_like(a, m), beta=0.1, preference_weight=0.05)
        )


def test_the_class_weighs_the_columns_by_name():
    """D = 7, m = .2 (.5 - 1) + .6 (.9 - .4) = .2, z = (.7 - .2) / .4."""
    method = made(MODPO, reward_weights={"reading": 0.2, "safety": 0.6}, preference_weight=0.4, beta=0.1)
    assert method.rewards == ("reading", "safety")
    logps = evolve(golden_rows(PAIR), rewards=torch.tensor([[0.5, 0.9], [1.0, 0.4]], dtype=torch.float64))
    assert values(total(method, logps)) == pytest.approx([math.log1p(math.exp(-1.25))])
    assert values(method.reward(logps)) == pytest.approx([0.2, -0.5])
    # the official code's: what w.R, .64 and .44, leave of it
    assert values(method.preference_reward(logps)) == pytest.approx([(0.2 - 0.64) / 0.4, (-0.5 - 0.44) / 0.4])
