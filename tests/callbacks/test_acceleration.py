"""Accelerated preference optimization: the extrapolated reference, its rounds, and where it must not be used."""

import math

import pytest
import torch
from tiny import arrange, policy, units
from training import fit, flat, make, resumed_equals_uninterrupted

from upo.callbacks.acceleration import (
    Acceleration,
    ExtrapolatedReference,
    depends_on_difference_only,
    extrapolate,
)
from upo.callbacks.reference_sync import ReferenceSync
from upo.errors import UserError
from upo.methods import DPO, KTO
from upo.methods.common.families import PairwiseMethod
from upo.methods.dpo import dpo_loss


def test_by_hand():
    new, old = torch.tensor([-3.0, -8.0]), torch.tensor([-4.0, -6.0])
    assert extrapolate(new, old, alpha=0.5).tolist() == [-2.5, -9.0]
    assert extrapolate(new, old, alpha=0.0).tolist() == [-3.0, -8.0]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.6])
def test_rounds_of_exact_dpo_go_as_nesterov_says(alpha):
    """Three answers, exact preferences: log(hat_t / start) = c_t reward + const with c <- s + 1 / beta and
    s <- c + alpha (c - c_before); hat is found by descending dpo_loss itself."""
    beta, reward = 0.5, torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    start = torch.tensor([0.1, 0.4, -0.3], dtype=torch.float64).log_softmax(0)
    i, j = (x.flatten() for x in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
    wins = torch.sigmoid(reward[i] - reward[j])
    hats, c, before, s = [start, start], 0.0, 0.0, 0.0
    for _ in range(4):
        reference = extrapolate(hats[-1], hats[-2], alpha=alpha)
        logits = reference.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15)

        def loss(logits=logits, reference=reference, optimizer=optimizer):
            optimizer.zero_grad()
            r = logits.log_softmax(0) - reference
            value = (wins * dpo_loss(r[i], r[j], beta=beta)).mean()
            value.backward()
            return value

        optimizer.step(loss)
        hats.append(logits.detach().log_softmax(0))
        before, c = c, s + 1 / beta
        s = c + alpha * (c - before)
        moved = hats[-1] - start
        assert (moved - moved[0]).tolist() == pytest.approx((c * (reward - reward[0])).tolist(), abs=1e-5)
    assert c > 4 / beta or alpha == 0


def test_the_reference_extrapolates_two_models():
    reference = ExtrapolatedReference(alpha=0.4)
    reference.build(policy(seed=1))
    responses = arrange(units([(3, [4, 2]), (2, [1, 5])]))
    one = reference.model(responses)["logps"]
    torch.testing.assert_close(reference.logps(responses), one)
    reference.model = policy(seed=2)
    two = reference.model(responses)["logps"]
    got = reference.logps(responses)
    torch.testing.assert_close(got, 1.4 * two - 0.4 * one)
    assert not got.requires_grad


def test_alpha_0_is_iterative_dpo(tmp_path):
    plain = fit(make(DPO), tmp_path, ReferenceSync(alpha=1.0, every=2)).watch.losses
    assert fit(make(DPO), tmp_path, Acceleration(0.0, every=2)).watch.losses == pytest.approx(plain, abs=1e-5)
    assert abs(fit(make(DPO), tmp_path, Acceleration(0.5, every=2)).watch.losses[5] - plain[5]) > 1e-4


def test_models_of_each_round(tmp_path):
    done = fit(make(DPO), tmp_path, Acceleration(0.5, every=2))
    policies, reference = done.watch.policies, done.method.reference
    assert torch.equal(flat(reference.model), policies[4])
    assert torch.equal(flat(reference.previous), policies[2])
    assert done.watch.losses[0] == pytest.approx(math.log(2), abs=1e-6)


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    resumed_equals_uninterrupted(DPO, lambda: Acceleration(0.5, 2), tmp_path, saved=5, steps=8)


def test_alpha_1_would_never_settle():
    with pytest.raises(UserError, match="below 1"):
        Acceleration(1.0)


class Pointwise(PairwiseMethod):
    def loss(self, chosen, rejected):
        return torch.sigmoid(-chosen.logratio) + torch.sigmoid(rejected.logratio)


@pytest.mark.parametrize("kind", [KTO, Pointwise])
def test_pointwise_losses_are_refused(kind, tmp_path):
    method = make(kind)
    assert not depends_on_difference_only(method) and depends_on_difference_only(make(DPO))
    with pytest.raises(UserError, match="difference of log-ratios"):
        fit(method, tmp_path, Acceleration())
