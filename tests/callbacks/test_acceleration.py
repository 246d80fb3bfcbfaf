"""Accelerated preference optimization: the extrapolated reference, its rounds, and where it must not be used."""

import math
from pathlib import Path

import every_method
import pytest
import torch
from attrs import evolve
from cases import case_of
from tiny import arrange, batch_of, policy, units
from training import fit, flat, make, pairs_file, resumed_equals_uninterrupted

import upo.methods
from upo.callbacks.acceleration import Acceleration, ExtrapolatedReference, extrapolate
from upo.callbacks.normaliser import normaliser_cancels
from upo.callbacks.reference_sync import ReferenceSync
from upo.data.batch import Step
from upo.data.module import PreferenceData
from upo.data.priority import ADVANTAGE
from upo.data.samplers import StepPlan
from upo.data.source import Source
from upo.errors import UserError
from upo.functional.divergences import ForwardKL, ReverseKL
from upo.methods import DPO, FDPO, GIPO, KTO, ODPO, AOTPaired, BetaDPO, CalDPO, SimPO, SPPOHard
from upo.methods.common.base import Method
from upo.methods.common.families import PairwiseMethod
from upo.methods.common.stepwise import CoupledLoss
from upo.methods.dpo import dpo_loss
from upo.rewards.length import Words

pytestmark = pytest.mark.turns(3)


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


METHODS = {name: getattr(upo.methods, name) for name in sorted(upo.methods.__all__)}
TOKENWISE = [name for name, kind in METHODS.items() if not kind.needs.of_reference <= ExtrapolatedReference.provides]
"""Losses that ask the reference for more than sums."""
SUMS = [name for name, kind in METHODS.items() if kind.needs.reference is not None and name not in TOKENWISE]


def data_of(kind: type[Method], folder: Path) -> PreferenceData:
    source = Source(case_of(kind).source, path=pairs_file(folder))
    rewards = {"rewards": {"length": Words()}, "rewards_cache": str(folder / "cache")}
    return PreferenceData((source,), validation=0, max_length=256, pairs_per_step=4, **rewards)


def test_methods_say_whether_a_normaliser_cancels():
    """Those whose reference gives sums, and no others."""
    assert [name for name, kind in METHODS.items() if case_of(kind).normaliser_cancels is not None] == SUMS


@pytest.mark.turns(6)
@pytest.mark.parametrize("name", SUMS)
def test_the_gradient_says_whether_a_normaliser_cancels(name, tmp_path):
    """Of all terms, on a step of several micro-batches and on one pair; the method stays as it is."""
    method = every_method.make(METHODS[name])
    data = data_of(type(method), tmp_path)
    data.prepare(method.policy.tokenizer, method.view, method.rewards, method.policy.context)
    known = data.read.train.with_column(ADVANTAGE, torch.ones(data.read.train.rows))
    data.use(evolve(data.read, train=known))
    method.configure_model()
    before = {name: x.clone() for name, x in method.state_dict().items()}
    for pairs, micro_batches in (([0, 1, 2], [[0, 1], [2]]), ([0], [[0]])):
        step = data.train[StepPlan(pairs, micro_batches, 0)]
        alone = pairs == [0] and isinstance(method, CoupledLoss)  # a step of one pair couples nothing else
        assert normaliser_cancels(method, step) is (case_of(type(method)).normaliser_cancels or alone), micro_batches
    assert all(torch.equal(x, before[name]) for name, x in method.state_dict().items())
    assert not method.val_means.compute() and not method.train_means.compute()
    assert method.response_logps.__func__ is Method.response_logps


@pytest.mark.parametrize("name", TOKENWISE)
def test_methods_that_need_tokens_of_the_reference_are_refused(name):
    method = every_method.make(METHODS[name])
    with pytest.raises(UserError, match=rf"{name} needs .* of each token .* remove the callback that accelerates it"):
        method.set_reference(ExtrapolatedReference())


@pytest.mark.parametrize(("divergence", "cancels"), [(ReverseKL(), True), (ForwardKL(), False)])
def test_options_decide_too(divergence, cancels, tmp_path):
    """The reverse KL makes f-DPO DPO."""
    method, sppo = make(FDPO, divergence=divergence), make(SPPOHard, beta=1e-6)
    for each, expected in ((method, cancels), (sppo, False)):
        each.configure_model()
        batch = batch_of(units([(3, [4, 2]), (2, [1, 5])]), each.view)
        assert normaliser_cancels(each, Step((batch,), batch.counts)) is expected


class Pointwise(PairwiseMethod):
    def loss(self, chosen, rejected):
        return torch.sigmoid(-chosen.logratio) + torch.sigmoid(rejected.logratio)

    def reward(self, logps):
        return logps.logratio


@pytest.mark.parametrize("kind", [KTO, Pointwise, CalDPO, SPPOHard])
def test_other_losses_are_refused_before_the_first_step(kind, tmp_path):
    method = make(kind)
    with pytest.raises(UserError, match=rf"that of {kind.__name__} is no function of the difference of log-ratios"):
        fit(method, tmp_path, Acceleration())
    assert method.trainer.global_step == 0


@pytest.mark.parametrize("kind", [AOTPaired, BetaDPO, GIPO, ODPO])
def test_losses_that_read_more_than_their_pairs_are_taken(kind, tmp_path):
    source = case_of(kind).source
    plain = fit(make(kind), tmp_path, ReferenceSync(alpha=1.0, every=2), source=source).watch.losses
    losses = fit(make(kind), tmp_path, Acceleration(0.0, every=2), source=source).watch.losses
    assert losses == pytest.approx(plain, rel=1e-4, abs=1e-5)


def test_methods_without_a_reference_are_told_so(tmp_path):
    with pytest.raises(UserError, match="Acceleration moves the reference, and SimPO has none; remove the callback"):
        fit(make(SimPO), tmp_path, Acceleration())
