"""A-LOL: its four losses, the value that is fitted before training, the advantage filter, and priority sampling."""

import json
import math

import lightning.pytorch as pl
import pytest
import torch
from attrs import evolve
from cases import Case
from losses import assert_gradcheck, draws, gradients, made
from tiny import PAIRS, unit
from training import Watch, fit
from training import make as plain_method

from upo.data.priority import ADVANTAGE, PrioritySampler
from upo.data.rounds import Split
from upo.errors import UserError
from upo.functional.value_fit import fit_value
from upo.methods import ALOL, ALOLKL, DPO, ALOLRefFree, ALOLSequence
from upo.methods.a_lol import a_lol_kl_loss, a_lol_loss, a_lol_ref_free_loss, a_lol_sequence_loss, clipped_ratio
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

CASE = Case(
    options={"reward_weights": {"length": 0.02}},
    data={"pairs_per_step": 16, "tokens_per_microbatch": 300},  # its units are single responses: a step is all of them
    metrics={"logps", "advantages", "desirable"},
    stops_gradients=True,
    defaults={},
)
CASES = {
    ALOL: evolve(CASE, normaliser_cancels=False, defaults={"clip": 0.9}),
    ALOLKL: evolve(CASE, normaliser_cancels=True, defaults={"beta": 0.1}),  # its gradient knows no reference
    ALOLRefFree: CASE,
    ALOLSequence: CASE,
}

ONE, TWO = torch.tensor([-6.0, -2.0]), torch.tensor([0.5, 2.0])


def test_losses_by_hand():
    """A = (0.5, 2), log pi = (-6, -2), ratio = (1.5, 4): the second is clipped to 1.9."""
    rho = torch.tensor([1.5, 4.0]).log()
    assert a_lol_loss(ONE, rho, TWO, clip=0.9).tolist() == pytest.approx([4.5, 7.6])
    assert a_lol_loss(ONE, -rho, TWO, clip=0.5).tolist() == pytest.approx([2.0, 2.0])
    assert a_lol_ref_free_loss(ONE, TWO).tolist() == [3.0, 4.0]
    assert a_lol_kl_loss(ONE, rho, TWO, beta=0.1).tolist() == pytest.approx(
        [3 + 0.1 * math.log(1.5), 4 + 0.1 * math.log(4)]
    )


def test_sequence_loss_by_hand():
    """Two responses of two tokens and one, token ratios (1, 4 clipped to 1.9) and 0.05 clipped to 0.1."""
    logps = torch.tensor([-1.0, -2.0, -3.0])
    rho = torch.tensor([1.0, 4.0, 0.05]).log()
    got = a_lol_sequence_loss(logps, rho, TWO, torch.tensor([0, 0, 1]), clip=0.9)
    assert got.tolist() == pytest.approx([0.5 * (1 + 3.8), 2 * 0.3])


def test_at_the_reference_all_variants_have_the_gradient_of_weighted_likelihood():
    zero, row = torch.zeros(2), torch.tensor([0, 1])
    for loss in (
        lambda x: a_lol_loss(x, x - ONE, TWO, clip=0.9),
        lambda x: a_lol_sequence_loss(x, x - ONE, TWO, row, clip=0.9),
        lambda x: a_lol_ref_free_loss(x, TWO),
        lambda x: a_lol_kl_loss(x, x - ONE, TWO, beta=0.0),
    ):
        assert gradients(loss, ONE)[0].tolist() == pytest.approx([-0.5, -2.0])
    assert a_lol_loss(ONE, zero, torch.ones(2), clip=0.9).tolist() == (-ONE).tolist()
    assert a_lol_loss(ONE, TWO, TWO, clip=0.0).tolist() == a_lol_ref_free_loss(ONE, TWO).tolist()


def test_ratio_and_advantage_carry_no_gradient():
    logps, rho, advantage = draws(3, 5, scale=1.0)
    moved = gradients(lambda r, a: a_lol_loss(logps.requires_grad_(), r, a, clip=0.9) + 0 * (r + a), rho, advantage)
    assert not any(g.any() for g in moved)
    assert_gradcheck(lambda x: a_lol_loss(x, rho, advantage, clip=0.9), draws(5))
    assert_gradcheck(lambda x: a_lol_kl_loss(x, x - rho, advantage, beta=0.3), draws(5))


@pytest.mark.parametrize("far", [1e4, -1e4, 0.0, -1e-9])
def test_finite_far_out(far):
    rho, row = torch.full((2,), far), torch.tensor([0, 1])
    for loss in (
        lambda x: a_lol_loss(x, rho, TWO, clip=0.9),
        lambda x: a_lol_loss(x, rho, TWO, clip=1.0),
        lambda x: a_lol_sequence_loss(x, rho, TWO, row, clip=0.9),
        lambda x: a_lol_kl_loss(x, x + rho, TWO, beta=0.1),
    ):
        assert loss(ONE).isfinite().all() and gradients(loss, ONE)[0].isfinite().all()
    assert clipped_ratio(rho, clip=0.9).min() >= 0.1 - 1e-6 and clipped_ratio(rho, clip=0.9).max() <= 1.9 + 1e-6


def test_the_methods_use_their_losses():
    from losses import logps_of

    both = logps_of([-6.0, -2.0], reference=[-6.0, -1.0])
    advantage = torch.tensor([0.5, 2.0], dtype=torch.float64)
    options = {"reward_weights": {}}
    assert made(ALOL, **options).loss(both, advantage).tolist() == pytest.approx([3.0, 4 * math.exp(-1)])
    assert made(ALOL, clip=0.1, **options).loss(both, advantage).tolist() == pytest.approx([3.0, 3.6])
    assert made(ALOLKL, beta=0.5, **options).loss(both, advantage).tolist() == pytest.approx([3.0, 3.5])
    assert made(ALOLRefFree, **options).loss(both, advantage).tolist() == [3.0, 4.0]
    assert made(ALOL, **options).reward(both).tolist() == [0.0, -1.0]


# ---- V -------------------------------------------------------------------------------------------------------------


def test_value_fit_finds_the_mean_of_each_prompt():
    """Two prompts with rewards 1, 0 and 3, 2: V is 0.5 and 2.5; the same seed gives the same head."""
    states, index = torch.eye(2), torch.tensor([0, 0, 1, 1])
    targets, values = torch.tensor([1.0, 0.0, 3.0, 2.0]), []
    for _ in range(2):
        torch.manual_seed(3)
        head = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
        before = torch.get_rng_state()
        fit_value(head, states, index, targets, steps=600, batch_size=32, lr=0.03, seed=5)
        assert torch.equal(before, torch.get_rng_state()), "the run's own random numbers stay as they were"
        values.append(head(states).tolist())
    assert values[0] == pytest.approx([0.5, 2.5], abs=0.15)
    assert values[0] == values[1]


def make(kind=ALOL, **options):
    config = plain_method(DPO).policy.config
    torch.manual_seed(0)
    return kind(
        Policy(config=config, tokenizer="tiny.tokenizer"),
        FrozenReference() if kind.needs.reference is not None else None,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
        **{"reward_weights": {}, "value_warmup_steps": 20} | options,
    )


SETTINGS = {"pairs_per_step": 3, "sampler": PrioritySampler}
QUIET = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def test_negative_advantages_are_dropped_and_the_others_travel_along(tmp_path):
    done = fit(make(), tmp_path, steps=1, **SETTINGS)
    method, units = done.method, done.data.train.units
    advantage = method.advantages["train"]
    assert len(advantage) == 16 and 0 < len(units) < 16
    assert len(units) == (advantage > 0).sum()
    kept = done.data.train.split.columns[ADVANTAGE].tolist()
    assert kept == advantage[advantage > 0].tolist() and min(kept) > 0
    batch = done.data.train.batch(list(range(len(units))))
    assert batch[ADVANTAGE].tolist() == kept
    spread = advantage.view(8, 2)
    assert ((spread[:, 0] - spread[:, 1] - 1).abs() < 1e-6).all(), "one V a prompt, labels 1 and 0"
    assert not [n for n, _ in method.named_parameters() if "value" in n], "V is frozen: nothing of it trains"


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_advantages_depend_neither_on_layout_nor_on_the_budget(layout, tmp_path):
    plain = fit(make(), tmp_path, steps=1, **SETTINGS).method.advantages["train"]
    other = fit(make(), tmp_path, steps=1, layout=layout, **SETTINGS | {"tokens_per_microbatch": 40}).method
    torch.testing.assert_close(other.advantages["train"], plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [ALOL, ALOLSequence, ALOLRefFree, ALOLKL])
def test_killed_and_resumed_equals_uninterrupted(kind, tmp_path):
    """Bit for bit, with the same draws, though the resumed run never fits V again."""
    whole = fit(make(kind), tmp_path, **SETTINGS).watch
    fit(make(kind), tmp_path, stop_at=5, save_every=4, **SETTINGS)
    late = make(kind)
    late._fitted = None  # would raise
    late = fit(late, tmp_path, ckpt_path=str(tmp_path / "step=4.ckpt"), **SETTINGS).watch
    assert sorted(late.losses) == [4, 5]
    assert [late.losses[s] for s in (4, 5)] == [whole.losses[s] for s in (4, 5)]


def test_two_runs_on_one_data_module_do_not_share_advantages(tmp_path):
    """Each drops what it has found itself, also where the first was killed, and equals a run on data of its own."""
    first = fit(make(), tmp_path, steps=6, stop_at=2, **SETTINGS)
    options = {"undesirable_reward": 0.9, "value_warmup_steps": 5}
    alone = fit(make(**options), tmp_path, steps=2, **SETTINGS)
    second, watch = make(**options), Watch()
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", logger=False, callbacks=[watch], **QUIET)
    torch.manual_seed(1)
    trainer.fit(second, datamodule=first.data)
    for split in ("train", "val"):
        assert torch.equal(second.advantages[split], alone.method.advantages[split])
    assert not torch.equal(second.advantages["train"], first.method.advantages["train"])
    assert ADVANTAGE not in first.data.read.train.columns, "what was read stays as it was"
    assert watch.losses == alone.watch.losses
    trainer.fit(second, datamodule=first.data)
    assert len(first.data.train) == (second.advantages["train"] > 0).sum(), "continued with what it has"


def test_a_resume_with_other_data_is_refused(tmp_path):
    fit(make(), tmp_path, steps=1, save_every=1, **SETTINGS)
    head, file = "\n\nHuman: {}\n\nAssistant: {}", tmp_path / "fewer.jsonl"
    rows = [{"chosen": head.format(p, c), "rejected": head.format(p, r)} for p, c, r in PAIRS[:4]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="advantages of 16 responses, the data has 8"):
        fit(make(), tmp_path, ckpt_path=str(tmp_path / "step=1.ckpt"), pairs=str(file), **SETTINGS)


def test_the_reward_is_label_plus_objectives():
    method = made(ALOL, reward_weights={"a": 2.0, "b": 0.5}, undesirable_reward=-1.0)
    rewards = {"a": 0.1, "b": 1.0, "c": 9.0}
    assert method.target(unit([1], [2], desirable=True, rewards=rewards)) == pytest.approx(1.7)
    assert method.target(unit([1], [2], desirable=False, rewards=rewards)) == pytest.approx(-0.3)


# ---- priority sampling ---------------------------------------------------------------------------------------------


def sampler(weights: list[float], epoch: int = 0, **options) -> PrioritySampler:
    split = Split(tuple(unit([1], [2]) for _ in weights)).with_column(ADVANTAGE, torch.tensor(weights))
    given = {"units_per_step": 4, "tokens_per_microbatch": 100, "shuffle": True, "seed": 0} | options
    return PrioritySampler([2] * len(weights), split=split, start=lambda: (epoch, 0), **given)


def test_draws_are_in_proportion_to_the_advantages():
    weights = [1.0, 3.0, 0.0, 6.0]
    counts = torch.zeros(4)
    ours = sampler(weights)
    for epoch in range(2000):
        counts += torch.bincount(torch.tensor([u for s in ours.steps(epoch) for u in s]), minlength=4)
    assert counts.sum() == 8000
    share = counts / 8000
    assert share[2] == 0
    for p, w in zip(share.tolist(), weights, strict=True):
        assert abs(p - w / 10) < 4 * math.sqrt(0.25 / 8000)


def test_the_order_depends_on_seed_and_epoch_alone():
    weights = torch.rand(10, generator=torch.Generator().manual_seed(0)).tolist()
    plans = [p.units for p in sampler(weights)]
    assert list(map(len, plans)) == [4, 4, 2] and len(sampler(weights)) == 3
    assert [p.units for p in sampler(weights, rank=1, world_size=2)] == plans
    assert [p.units for p in sampler(weights, epoch=1)] != plans != [p.units for p in sampler(weights, seed=1)]
    late = sampler(weights)
    late.start = lambda: (0, 1)
    assert [p.units for p in late] == plans[1:]


def test_methods_without_advantages_are_refused(tmp_path):
    with pytest.raises(UserError, match="ALOL"):
        fit(plain_method(DPO), tmp_path, sampler=PrioritySampler)


def test_uniform_sampling_works_too(tmp_path):
    watch: Watch = fit(make(), tmp_path, steps=2, pairs_per_step=3).watch
    assert len(watch.losses) == 2
