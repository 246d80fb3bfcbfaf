"""One optimizer step: the same gradient however it is cut, in every precision; and what is logged of it."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision, Precision
from tiny import arrange, units
from training import flat, make, pairs_file

import upo.methods
from upo.data.batch import Batch, Step
from upo.data.module import PreferenceData
from upo.data.source import Source
from upo.errors import UserError
from upo.methods import DPO, SFT, UPO
from upo.methods.common.base import Method
from upo.methods.common.term import LossTerm, common
from upo.rewards.length import Words

LR = 0.1


def fp16(scale: float = 2.0**10) -> MixedPrecision:
    """What a GPU without bfloat16 trains in, on the CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


class Cut(pl.Callback):
    """How many micro-batches the steps had."""

    def on_train_batch_start(self, trainer, pl_module, batch, _):
        self.micro_batches = len(batch.micro_batches)


def one_step(method: Method, folder, plugin: Precision, tokens: int, clip: float | None = None) -> SimpleNamespace:
    """One step of four pairs with plain gradient descent."""
    method.make_optimizer = lambda groups: torch.optim.SGD(groups, lr=LR)
    data = PreferenceData(
        (Source("hh", path=pairs_file(folder)),), validation=0, max_length=256, pairs_per_step=4,
        tokens_per_microbatch=tokens, rewards={"length": Words()}, rewards_cache=str(folder),
    )  # fmt: skip
    cut = Cut()
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", plugins=[plugin], gradient_clip_val=clip, logger=False, callbacks=[cut],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    method.configure_model()
    before = flat(method.policy)
    trainer.fit(method, datamodule=data)
    moved = flat(method.policy) - before
    norm = trainer.callback_metrics["train/grad_norm"].item()
    return SimpleNamespace(norm=norm, moved=moved, micro_batches=cut.micro_batches)


OPTIONS = {UPO: {"reward_weights": {"length": 0.02}, "value_warmup_steps": 0}}


@pytest.mark.parametrize("kind", [DPO, UPO])
@pytest.mark.parametrize("plugin", [Precision, lambda: MixedPrecision("bf16-mixed", "cpu"), fp16])
def test_micro_batches_add_up_to_the_step_in_every_precision(kind, plugin, tmp_path):
    whole, cut = (one_step(make(kind, **OPTIONS.get(kind, {})), tmp_path, plugin(), n) for n in (10_000, 60))
    assert whole.micro_batches == 1 and cut.micro_batches >= 3
    assert whole.norm > 0.1
    assert cut.norm == pytest.approx(whole.norm, rel=2e-2)
    assert (cut.moved - whole.moved).norm() < 2e-2 * whole.moved.norm()
    assert whole.moved.norm() == pytest.approx(LR * whole.norm, rel=1e-3), "unscaled before the step"


def test_gradients_are_clipped_without_the_scale(tmp_path):
    done = one_step(make(DPO), tmp_path, fp16(), 60, clip=0.01)
    assert done.moved.norm() == pytest.approx(LR * 0.01, rel=1e-3)
    assert done.norm == pytest.approx(one_step(make(DPO), tmp_path, Precision(), 60).norm, rel=2e-2)


def test_an_optimizer_that_unscales_too_late_is_refused(tmp_path):
    def run(plugin: Precision) -> None:
        method = make(DPO)
        method.make_optimizer = lambda groups: torch.optim.AdamW(groups, fused=True)
        data = PreferenceData((Source("hh", path=pairs_file(tmp_path)),), validation=0, max_length=256)
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        pl.Trainer(max_steps=1, accelerator="cpu", plugins=[plugin], **options).fit(method, datamodule=data)

    with pytest.raises(UserError, match=r"AdamW with fused: true .*leave fused out.*16-mixed"):
        run(fp16())
    run(Precision())


class Two(SFT):
    """A loss of two terms with denominators of their own."""

    swapped = False
    metric_names = ("loss/nll", "loss/each")

    def terms(self, batch, logps, statistics):
        both = {
            "nll": LossTerm(-logps.logps, "tokens"),
            "each": LossTerm(logps.lengths.float() ** 2, "responses", weight=0.5),
        }
        return dict(reversed(both.items())) if self.swapped else both

    def update_metrics(self, stage, batch, logps):
        pass


@pytest.mark.parametrize("swapped", [False, True])
def test_terms_keep_their_own_denominators_whatever_comes_first(swapped):
    """One step of two micro-batches: the logged loss is the optimised one, and its terms are global means."""
    method = make(Two)
    method.configure_model()
    method.swapped = swapped
    batches = [Batch(arrange(units(x))) for x in ([(3, [4]), (2, [7])], [(2, [1])])]
    step = Step(tuple(batches), {"prompts": 3, "responses": 3, "tokens": 12})
    loss = sum(method.loss_of(b, step, {}, "train") for b in batches).item()
    logged = {name: x.item() for name, x in method.compute_metrics("train").items()}
    nll = sum(-method.response_logps(b.responses).logps.sum().item() for b in batches) / 12
    each = (4**2 + 7**2 + 1) / 3
    assert loss == pytest.approx(nll + 0.5 * each, rel=1e-6)
    assert logged["loss"] == pytest.approx(loss, rel=1e-6)
    assert logged["loss/each"] == pytest.approx(each, rel=1e-6)


def test_what_a_loss_is_a_mean_over():
    one, other = LossTerm(torch.ones(2), "responses"), LossTerm(torch.ones(2), "tokens")
    assert common([one, one]) == "responses" and common([other]) == "tokens"
    assert common([one, other]) == common([other, one]) == "prompts", "whatever comes first"


def test_statistics_are_logged_that_are_named_so():
    class Knowing(SFT):
        metric_names = ("logps/chosen", "seen")
        logged_statistics = ("seen",)

        def statistics(self, step):
            return {"seen": torch.tensor(3.0), "logps/chosen": torch.tensor(9.0)}

    method = make(Knowing)
    assert method.step_statistics(Step((), {}), "val").keys() == {"seen", "logps/chosen"}
    assert {name: x.item() for name, x in method.compute_metrics("val").items()} == {"seen": 3.0}, (
        "no metric by its name alone"
    )


@pytest.mark.parametrize("name", upo.methods.__all__)
def test_logged_statistics_are_metrics(name):
    kind = getattr(upo.methods, name)
    assert set(kind.logged_statistics) <= set(kind.metric_names)
