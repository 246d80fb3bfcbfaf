"""What holds for every method: another way to the same step gives the same step."""

import copy

import every_method
import fake_ranks
import lightning.pytorch as pl
import pytest
import torch
import training
from cases import case_of
from every_method import (
    CORE_OR_SIXTH,
    Watch,
    fit,
    make,
)
from tiny import plain_logps

import upo.methods
from upo.data.samplers import StepSampler
from upo.data.units import Unit
from upo.errors import UserError
from upo.methods.common.base import Method
from upo.models.policy import Policy
from upo.rewards.length import Words

pairs, run = every_method.pairs, every_method.run


@pytest.mark.parametrize("kind", CORE_OR_SIXTH)
def test_layouts_give_the_same_losses(kind, pairs, tmp_path):
    """At a rate at which rounding does not grow; micro-batches differ as well."""
    packed, padded = (fit(kind, pairs, tmp_path, 4, 1e-3, layout=layout).rows for layout in ("packed", "padded"))
    for a, b in zip(packed, padded, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)
        assert a["train/grad_norm"] == pytest.approx(b["train/grad_norm"], rel=1e-3)
    assert packed[0]["train/loss"] != packed[-1]["train/loss"]


def test_updates_are_those_of_a_plain_loop(pairs, tmp_path):
    """DPO with SGD: an epoch of four steps in Lightning, two micro-batches each, against the same written out."""
    done = fit(upo.methods.DPO, pairs, tmp_path, 0, pairs_per_step=2, tokens_per_microbatch=1)
    method = done.method
    order = [[done.data.train.units[i] for i in plan.units] for plan in done.data.train_dataloader().sampler]
    assert list(map(len, order)) == [2, 2, 2, 2]
    policy, reference = method.policy, copy.deepcopy(method.policy)
    start = copy.deepcopy(policy.state_dict())
    expected = []
    for units in order:
        chosen, rejected = (
            torch.stack([sum_of(policy, u, k) - sum_of(reference, u, k).detach() for u in units]) for k in (0, 1)
        )
        loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
        policy.zero_grad()
        loss.backward()
        expected.append(loss.item())
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter -= 0.05 * parameter.grad
    end = copy.deepcopy(policy.state_dict())
    policy.load_state_dict(start)
    method.make_optimizer = lambda p: torch.optim.SGD(p, lr=0.05)
    method.make_scheduler = lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)
    watch, quiet = Watch(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[watch], **quiet)
    trainer.fit(method, datamodule=done.data)
    assert max(expected) - min(expected) > 1e-3
    assert [row["train/loss"] for row in watch.rows] == pytest.approx(expected, abs=1e-5)
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(tensor, end[name], atol=1e-5, rtol=1e-4)
    assert max((end[name] - start[name]).abs().max() for name in end) > 1e-3


def sum_of(policy: Policy, unit: Unit, k: int) -> torch.Tensor:
    return plain_logps(policy, unit.prompt, unit.responses[k]).sum()


@pytest.mark.parametrize("kind", CORE_OR_SIXTH)
def test_resumed_in_the_midst_of_an_epoch_equals_uninterrupted(kind, pairs, tmp_path):
    """Bit for bit, what the method itself carries from step to step included."""
    options = {"source": case_of(kind).source, "pairs_per_step": 3, "tokens_per_microbatch": 600}
    options |= {"rewards": {"length": Words()}, "rewards_cache": str(tmp_path / "cache"), "pairs": pairs, "steps": 5}
    whole = training.fit(make(kind), tmp_path / "whole", save_every=2, **options)
    saved = tmp_path / "whole" / "step=2.ckpt"
    late = training.fit(make(kind), tmp_path / "late", ckpt_path=str(saved), **options)
    assert late.watch.losses == {step: whole.watch.losses[step] for step in (2, 3, 4)}
    for (name, a), b in zip(whole.method.state_dict().items(), late.method.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", [x for x in CORE_OR_SIXTH if x.id not in ("SFT", "DPO", "UPO")])
def test_two_ranks_and_their_micro_batches_add_up_to_one(kind, run, monkeypatch):
    """Loss and gradient of a step, whatever it needs to know of the rest before its first backward pass."""
    data = run(kind).data.train

    def share(rank: int, world_size: int, budget: int) -> list[torch.Tensor]:
        method = moved(kind)
        costs = [data.cost(i) for i in range(len(data))]
        options = {"units_per_step": len(data), "tokens_per_microbatch": budget, "shuffle": False, "seed": 0}
        (plan,) = StepSampler(costs, **options, rank=rank, world_size=world_size)
        step = data[plan]
        known = method.statistics(step)
        loss = sum(method.loss_of(batch, step, known, "train") for batch in step.micro_batches)
        return [loss.detach(), *torch.autograd.grad(loss, list(method.parameters()))]

    one = share(0, 1, 10_000)
    assert max(x.abs().max() for x in one[1:]) > 1e-3
    for a, *both in zip(one, *fake_ranks.on_ranks(lambda rank: share(rank, 2, 300), 2, monkeypatch), strict=True):
        torch.testing.assert_close(sum(both), a, rtol=1e-3, atol=1e-5 * max(1.0, a.abs().max().item()))


def moved(kind: type[Method]) -> Method:
    """A method whose policy differs from its reference."""
    method = make(kind)
    method.configure_model()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return method


@pytest.mark.parametrize("kind", [x for x in CORE_OR_SIXTH if x.id not in ("SFT", "DPO", "KTO")])
def test_mixed_precision_starts_where_full_precision_does(kind, pairs, run, tmp_path):
    mixed, full = fit(kind, pairs, tmp_path, 1, precision="bf16-mixed").rows[0], run(kind).rows[0]
    assert mixed["train/loss"] == pytest.approx(full["train/loss"], rel=2e-2)
    assert mixed["train/grad_norm"] == pytest.approx(full["train/grad_norm"], rel=5e-2)


def test_a_precision_that_the_reference_would_not_share_is_refused(pairs, tmp_path):
    with pytest.raises(UserError, match=r"policy\.dtype"):
        fit(upo.methods.DPO, pairs, tmp_path, 1, precision="bf16-true")
