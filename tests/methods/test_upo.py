"""UPO: the auxiliary term, its value head, and how both live beside a preference term."""

import math

import pytest
import torch
from attrs import evolve
from cases import Case
from tiny import arrange, policy, units

from upo.data.batch import Batch, Step
from upo.data.units import Unit
from upo.errors import UserError
from upo.functional.value_losses import Expectile, Linex
from upo.methods.common.value_head import ValueHead
from upo.methods.upo import UPO, UPODPO, UPOIPO, advantage_weights, auxiliary_loss
from upo.models.logps import ResponseLogps
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

CASE = Case(
    options={"reward_weights": {"length": 0.02}, "value_warmup_steps": 2},
    heads={"value_head"},
    metrics={
        *(f"loss/{name}" for name in ("preference", "auxiliary", "value")),
        *(f"objective/{name}" for name in ("chosen", "rejected")),
        *(f"weights/{name}" for name in ("mean", "max", "p99", "ess")),
        *(f"value/{name}" for name in ("mean", "explained_variance")),
    },
    normaliser_cancels=True,
    defaults={},
)
"""Of every method with UPO's auxiliary term."""
CASES = {
    UPO: evolve(CASE, metrics={*CASE.metrics, "kl"}, normaliser_cancels=False),
    UPODPO: CASE,
    UPOIPO: CASE,
}

CONFIG = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG |= {"intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.2}
WORK = units([(3, [9, 2]), (5, [1, 3]), (2, [4, 4])])
REWARDS = torch.tensor([[0.9, 0.1], [0.2, 1.0], [0.5, 0.5], [0.0, 0.3], [1.0, 0.0], [0.4, 0.7]])


def method(kind: type = UPO, **options) -> UPO:
    """A method at its first step; the safety column weighs 0.7, the readability column 0.3."""
    options = {
        "reward_weights": {"safety": 0.7, "readability": 0.3},
        "value_dropout": 0.0,
        "value_warmup_steps": 0,
    } | options
    made = kind(Policy(config=CONFIG, tokenizer="tiny.tokenizer"), FrozenReference(), **options)
    torch.manual_seed(0)
    made.configure_model()
    return made


def batch(rewards: torch.Tensor = REWARDS) -> Batch:
    """Pairs, or a desirable and an undesirable response each: their rows are the same."""
    responses = evolve(arrange(WORK), rewards=rewards)
    return Batch(responses, {"preferred": torch.tensor([True, False] * 3)})


def terms(made, rewards=REWARDS):
    one = batch(rewards)
    logps = made.response_logps(one.responses, made.needs)
    return made.terms(one, logps, {"kl": torch.tensor(0.0)}), logps


def gradients(value: torch.Tensor, module: torch.nn.Module) -> list[torch.Tensor | None]:
    return list(torch.autograd.grad(value, list(module.parameters()), allow_unused=True, retain_graph=True))


# ---- the auxiliary term --------------------------------------------------------------------------------------------


def test_auxiliary_loss_by_hand():
    logps, lengths = torch.tensor([-6.0, -2.0]), torch.tensor([3, 1])
    weights = torch.tensor([0.5, 4.0])
    assert auxiliary_loss(logps, lengths, weights).tolist() == [1.0, 8.0]
    assert auxiliary_loss(logps, lengths, weights, length_normalize=False).tolist() == [3.0, 8.0]


def test_weights_by_hand_and_without_any_gradient():
    value = torch.tensor([0.5, 0.5], requires_grad=True)
    weights = advantage_weights(torch.tensor([1.0, 0.3]), value, lam=5.0)
    assert weights.tolist() == pytest.approx([math.exp(2.5), math.exp(-1.0)])
    assert advantage_weights(torch.tensor([1.0, 0.3]), value, lam=0.0).tolist() == [1.0, 1.0]
    logps = torch.tensor([-6.0, -2.0], requires_grad=True)
    loss = auxiliary_loss(logps, torch.tensor([3, 1]), weights)
    by_value, by_logps = torch.autograd.grad(loss.sum(), (value, logps), allow_unused=True)
    assert by_value is None
    assert by_logps.tolist() == pytest.approx([-math.exp(2.5) / 3, -math.exp(-1.0)])


@pytest.mark.parametrize("logp", [-1e4, -1e-9, 0.0])
@pytest.mark.parametrize("lam", [0.0, 5.0])
def test_auxiliary_loss_is_finite_far_out(logp, lam):
    logps = torch.tensor([logp, logp], requires_grad=True)
    weights = advantage_weights(torch.tensor([0.0, 1.0]), torch.zeros(2), lam=lam)
    loss = auxiliary_loss(logps, torch.tensor([1, 1]), weights)
    assert loss.isfinite().all() and torch.autograd.grad(loss.sum(), logps)[0].isfinite().all()


def test_gradcheck():
    logps = torch.tensor([-3.0, -0.4, -20.0], dtype=torch.float64, requires_grad=True)
    weights, lengths = torch.tensor([0.1, 3.0, 1.0], dtype=torch.float64), torch.tensor([2, 1, 7])
    for normalize in (True, False):
        assert torch.autograd.gradcheck(
            lambda x, n=normalize: auxiliary_loss(x, lengths, weights, length_normalize=n), logps
        )


LENGTHS = torch.tensor([1, 2, 3, 5, 8, 13])
BANDIT_REWARDS = torch.tensor([0.1, 0.9, 0.3, 1.0, 0.0, 0.6])
DATA = torch.tensor([7, 1, 4, 2, 5, 3])
"""How often each of six responses to one prompt stands in the data."""


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("lam", [0.0, 2.0, 5.0])
def test_on_an_enumerable_bandit_the_optimum_is_the_tilted_data(lam, normalize):
    """One prompt, six whole responses with free probabilities, the auxiliary term of UPO alone, through the class."""
    made = method(lam=lam, length_normalize=normalize, reward_weights={"safety": 1.0})
    rows = torch.repeat_interleave(torch.arange(6), DATA)
    labelled = Batch(arrange(units([(3, [1] * len(rows))])), {"preferred": torch.arange(len(rows)) % 2 == 0})
    hidden = torch.randn(1, 32)
    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=300, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        logps = theta.log_softmax(0)[rows]
        zero = torch.zeros_like(rows)
        known = ResponseLogps(
            logps,
            LENGTHS[rows],
            zero,
            torch.zeros(len(rows)),
            BANDIT_REWARDS[rows, None],
            {"prompt_hidden": hidden},
        )
        loss = made.terms(labelled, known, {"kl": torch.tensor(0.0)})["auxiliary"].values.mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimum = DATA.double() * torch.exp(lam * BANDIT_REWARDS.double())
    if normalize:
        optimum = optimum / LENGTHS
    torch.testing.assert_close(theta.detach().softmax(0), optimum / optimum.sum(), atol=1e-5, rtol=1e-4)


# ---- the class -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UPO, UPODPO])
def test_terms_against_the_equations(kind):
    made = method(kind, gamma=0.3, lam=2.0, value_coefficient=0.2, value_loss=Expectile(0.8))
    got, logps = terms(made)
    objective = REWARDS @ torch.tensor([0.7, 0.3])
    value = made.value_head(logps.outputs["prompt_hidden"])[torch.tensor([0, 0, 1, 1, 2, 2])]
    weights = torch.exp(2.0 * (objective - value))
    torch.testing.assert_close(got["auxiliary"].values, -weights * logps.logps / logps.lengths)
    error = objective - value
    torch.testing.assert_close(got["value"].values, torch.where(error < 0, 0.2, 0.8) * error**2)
    assert (got["auxiliary"].mean_over, got["auxiliary"].weight) == ("responses", 0.3)
    assert (got["value"].mean_over, got["value"].weight) == ("responses", 0.2)
    assert got["preference"].values.tolist() == pytest.approx([kind.initial_loss] * len(got["preference"].values))
    assert got["preference"].mean_over == ("prompts" if kind is UPODPO else "responses")


def test_total_loss_is_the_weighted_sum_of_global_means():
    """Over two micro-batches of unequal size; denominators are the step's responses."""
    made = method(gamma=0.3)
    got, _ = terms(made)
    expected = sum(t.weight * t.values.mean() for t in got.values())
    parts = []
    for part, rows in ((WORK[:1], slice(0, 2)), (WORK[1:], slice(2, 6))):
        responses = evolve(arrange(part), rewards=REWARDS[rows])
        parts.append(Batch(responses, {"preferred": torch.tensor([True, False] * len(part))}))
    step = Step(tuple(parts), {"prompts": 3, "responses": 6, "tokens": 23})
    total = sum(made.loss_of(b, step, {"kl": torch.tensor(0.0)}, "train") for b in parts)
    torch.testing.assert_close(total, expected)
    seen = made.compute_metrics("train")
    torch.testing.assert_close(seen["loss"], expected.detach())
    for name, term in got.items():
        torch.testing.assert_close(seen[f"loss/{name}"], term.values.detach().mean())
    objective = REWARDS @ torch.tensor([0.7, 0.3])
    torch.testing.assert_close(seen["objective/chosen"], objective[0::2].mean())
    torch.testing.assert_close(seen["objective/rejected"], objective[1::2].mean())


@pytest.mark.parametrize("kind", [UPO, UPODPO])
def test_each_term_reaches_only_its_own_parameters(kind):
    made = method(kind)
    got, _ = terms(made)
    assert all(g is None for g in gradients(got["value"].values.sum(), made.policy))
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(got["value"].values.sum(), made.value_head))
    for name in ("auxiliary", "preference"):
        assert all(g is None for g in gradients(got[name].values.sum(), made.value_head))
        assert any(g is not None and g.abs().sum() > 0 for g in gradients(got[name].values.sum(), made.policy))


def test_the_value_does_not_see_the_response():
    made = method()
    _, logps = terms(made)
    value = made.value(logps)
    assert (value[0::2] == value[1::2]).all(), "both responses of a prompt"
    assert len(value.unique()) == 3, "different prompts differ"
    other = [Unit.of(u.prompt, tuple([5, *r] for r in u.responses)) for u in WORK]
    for layout in ("packed", "padded"):
        hidden = made.policy(arrange(other, layout), ("prompt_hidden",))["prompt_hidden"]
        torch.testing.assert_close(hidden, logps.outputs["prompt_hidden"], atol=1e-5, rtol=1e-5)


def cut(shares: list[list[int]], layout: str = "packed") -> Step:
    """Eight prompts with a pair each, in these micro-batches."""
    work, rewards = units([(3 + i, [2 + i % 3, 4]) for i in range(8)]), torch.linspace(0, 1, 32).view(16, 2)
    batches = []
    for share in shares:
        places = torch.tensor([2 * i + k for i in share for k in (0, 1)])
        responses = evolve(arrange([work[i] for i in share], layout), rewards=rewards[places])
        batches.append(Batch(responses, {"preferred": places % 2 == 0}, global_index=places))
    return Step(tuple(batches), {"prompts": 8, "responses": 16, "tokens": 55})


def head_gradient(made: UPO, step: Step) -> torch.Tensor:
    made.zero_grad()
    for one in step.micro_batches:
        made.loss_of(one, step, {"kl": torch.tensor(0.0)}, "train").backward()
    return torch.cat([p.grad.flatten() for p in made.value_head.parameters()])


@pytest.mark.parametrize("per_reward", [False, True])
def test_dropout_does_not_depend_on_the_split(per_reward):
    made = method(lam=0.2, value_dropout=0.3, value_per_reward=per_reward)
    whole = head_gradient(made, cut([list(range(8))]))
    splits = [[5, 0, 3], [6], [1, 2, 4, 7]], [[i] for i in reversed(range(8))]
    for shares in splits:
        torch.testing.assert_close(head_gradient(made, cut(shares)), whole, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(head_gradient(made, cut(splits[0], "padded")), whole, atol=1e-6, rtol=1e-4)
    made.data_seed = 1
    assert (head_gradient(made, cut(splits[0])) - whole).norm() > 0.05 * whole.norm(), "another run, other masks"


def test_each_step_and_each_prompt_draws_its_own_dropout(monkeypatch):
    made, step = method(lam=0.2, value_dropout=0.3), cut([[0]])
    first = head_gradient(made, step)
    monkeypatch.setattr(type(made), "global_step", property(lambda self: 1))
    assert not torch.allclose(head_gradient(made, step), first)
    head, row = ValueHead(64, dropout=0.3), torch.randn(1, 64).expand(500, 64)
    values = head(row, [(0, 0, place) for place in range(500)])
    assert len(values.unique()) == 500
    torch.testing.assert_close(values[7:9], head(row[:2], [(0, 0, 7), (0, 0, 8)]))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_drops_each_unit_with_p(p):
    """Behind a first layer of ones and an identity, the head adds what both masks leave of each unit."""
    head = ValueHead(64, dropout=p)
    for layer in (head.layers[0], head.layers[3], head.layers[6]):
        torch.nn.init.zeros_(layer.bias)
    for layer in (head.layers[0], head.layers[3]):
        torch.nn.init.eye_(layer.weight)
    torch.nn.init.constant_(head.layers[6].weight, 1 / 64)
    values = head(torch.ones(2000, 64), [(3, 1, place) for place in range(2000)]).detach()
    spread = ((1 / (1 - p) ** 2 - 1) / 64) ** 0.5
    assert values.mean().item() == pytest.approx(1, abs=4 * spread / 2000**0.5)
    assert values.std().item() == pytest.approx(spread, rel=0.1)
    assert head(torch.ones(1, 64)).item() == pytest.approx(1), "without seeds nothing is dropped"


def test_all_units_may_be_dropped():
    head = ValueHead(8, dropout=1.0)
    assert head(torch.randn(2, 8), [(0,), (1,)]).tolist() == pytest.approx([head.layers[6].bias.item()] * 2)


def test_dropout_acts_in_the_value_loss_alone():
    made, plain = method(value_dropout=0.5), method()
    plain.load_state_dict(made.state_dict())
    (one,) = cut([list(range(8))]).micro_batches
    logps = made.response_logps(one.responses, made.needs)
    both = [m.terms(one, logps, {"kl": torch.tensor(0.0)}) for m in (made, plain)]
    assert not torch.equal(*(terms["value"].values for terms in both))
    assert torch.equal(*(terms["auxiliary"].values for terms in both))
    made.eval()
    assert torch.equal(made.terms(one, logps, {"kl": torch.tensor(0.0)})["value"].values, both[1]["value"].values)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_before_the_warm_up_ends_only_the_value_head_learns_from_rewards(scale):
    """Whatever the rewards are: with large ones an untrained head leaves weights of exp(50000)."""
    made = method(value_warmup_steps=1)
    got, _ = terms(made, scale * REWARDS)
    preference = gradients(got["preference"].values.mean(), made.policy)
    loss = torch.stack([t.weight * t.values.mean() for t in got.values()]).sum()
    assert loss.isfinite()
    for total, alone in zip(gradients(loss, made.policy), preference, strict=True):
        torch.testing.assert_close(total, alone)
    assert all(g.abs().sum() > 0 for g in gradients(loss, made.value_head))


def test_gamma_0_is_the_preference_method_and_lambda_0_plain_likelihood():
    made = method(gamma=0.0)
    got, _ = terms(made)
    total = torch.stack([t.weight * t.values.mean() for t in got.values()]).sum()
    alone = gradients(got["preference"].values.mean(), made.policy)
    for a, b in zip(gradients(total, made.policy), alone, strict=True):
        torch.testing.assert_close(a, b)
    got, logps = terms(method(lam=0.0))
    torch.testing.assert_close(got["auxiliary"].values, -logps.mean)


def test_linex_is_for_the_lambda_of_the_weights():
    """With another one a prompt's mean weight would not be 1; without weights any will do."""
    with pytest.raises(
        UserError, match=r"Linex has lam 5, the weights have 2, .* model\.value_loss\.init_args\.lam: 2"
    ):
        method(lam=2.0, value_loss=Linex(5.0))
    assert method(lam=2.0, value_loss=Linex(2.0)).value_loss.lam == 2.0
    method(lam=0.0, value_loss=Linex(5.0))


@pytest.mark.parametrize(("loss", "of"), [(Expectile(0.5), "mean"), (Linex(5.0), "log-mean-exp")])
def test_the_head_learns_v_of_each_prompt(loss, of):
    """Four prompts with three responses each, the head trained by L_V alone."""
    torch.manual_seed(0)
    hidden, rewards = torch.randn(4, 32), torch.rand(4, 3)
    head = ValueHead(32, dropout=0.0)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        loss(rewards.flatten() - head(hidden)[torch.arange(4).repeat_interleave(3)]).mean().backward()
        optimizer.step()
    expected = rewards.mean(1) if of == "mean" else torch.exp(5 * rewards).mean(1).log() / 5
    torch.testing.assert_close(head(hidden).detach(), expected, atol=2e-2, rtol=0)


def test_large_weights_are_reported_once_after_the_warm_up():
    made = method(lam=50.0)
    one = batch()
    step = Step((one,), {"prompts": 3, "responses": 6, "tokens": 23})
    with pytest.warns(UserWarning, match="advantage weight"):
        made.loss_of(one, step, {"kl": torch.tensor(0.0)}, "train")


def test_float64_policy():
    """Rewards and the head are float32, log-probs float64."""
    made = method()
    made.policy = policy(dtype="float64")
    made.reference.model = made.policy.frozen_copy()
    got, _ = terms(made)
    assert torch.stack([t.weight * t.values.sum() for t in got.values()]).sum().isfinite()
    assert got["auxiliary"].values.dtype == torch.float64
