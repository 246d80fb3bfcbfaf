"""Reward-weighted SFT: values, limits, gradients by response, and which rewards are refused."""

import pytest
import torch
from attrs import evolve
from cases import Case
from losses import assert_gradcheck, draws, gradients, logps_of, made
from tiny import arrange, units

from upo.data.batch import Batch
from upo.errors import UserError
from upo.methods.reward_weighted_sft import RewardWeightedSFT, reward_weighted_loss

CASES = {
    RewardWeightedSFT: Case(
        options={"reward_weights": {"length": 0.02}},
        metrics={"nll/chosen", "nll/rejected", "objective/chosen", "objective/rejected"},
        defaults={},
    ),
}

LENGTHS = torch.tensor([3, 1, 10])


def test_by_hand():
    loss = reward_weighted_loss(torch.tensor([-6.0, -2.0, -5.0]), LENGTHS, torch.tensor([0.5, 4.0, 0.0]))
    assert loss.tolist() == [1.0, 8.0, 0.0]


def test_only_rewarded_responses_are_pushed_up_by_reward_a_token():
    (slope,) = gradients(
        lambda x: reward_weighted_loss(x, LENGTHS, torch.tensor([0.5, 4.0, 0.0]).double()), draws(3)
    )  # fmt: skip
    assert slope.tolist() == pytest.approx([-0.5 / 3, -4.0, 0.0])
    assert_gradcheck(lambda x: reward_weighted_loss(x, LENGTHS, torch.ones(3).double()), draws(3))


def test_finite_far_out():
    far = torch.tensor([1e4, -1e4, -1e-9])
    loss = lambda x: reward_weighted_loss(x, LENGTHS, torch.ones(3))  # noqa: E731
    assert loss(far).isfinite().all() and gradients(loss, far)[0].isfinite().all()


def test_the_optimum_on_a_bandit_is_the_data_times_reward_over_length():
    """sum_y n_y R_y / |y| (-log p_y) is least at p_y in proportion to n_y R_y / |y|: no exponential, no value."""
    often, rewards = torch.tensor([5.0, 1.0, 3.0]).double(), torch.tensor([0.2, 1.0, 0.7]).double()
    mass = often * rewards / LENGTHS
    theta = (mass / mass.sum()).log()
    risk = lambda t: often * reward_weighted_loss(t.log_softmax(0), LENGTHS, rewards)  # noqa: E731
    assert gradients(risk, theta)[0].abs().max() < 1e-12
    assert gradients(risk, torch.zeros(3).double())[0].abs().max() > 0.05


def batch() -> Batch:
    return Batch(arrange(units([(2, [1, 1]), (2, [1])])), {"preferred": torch.tensor([True, False, True])})


def test_the_class_takes_every_response_whatever_its_label():
    method = made(RewardWeightedSFT, reward_weights={"safety": 2.0, "reading": 1.0})
    rewards = torch.tensor([[0.5, 0.1], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    logps = evolve(logps_of([-6.0, -2.0, -5.0], lengths=[3, 1, 10]), rewards=rewards)
    term = method.terms(batch(), logps, {})["nll"]
    assert term.values.tolist() == pytest.approx([1.1 * 2, 2.0 * 2, 0.0]) and term.mean_over == "responses"


def test_negative_rewards_are_refused():
    method = made(RewardWeightedSFT, reward_weights={"safety": -1.0})
    logps = evolve(logps_of([-6.0, -2.0, -5.0]), rewards=torch.tensor([[0.0], [0.2], [0.0]]))
    with pytest.raises(UserError, match=r"reward -0\.2.*never negative"):
        method.terms(batch(), logps, {})
