"""A loss, a log-prob, a reward or a gradient that is no number ends the run before its update, and says which."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from training import fit, flat, make, pairs_file

import upo.methods
from upo.data.module import PreferenceData
from upo.data.source import Source
from upo.errors import RunFailed
from upo.methods import DPO, SFT
from upo.methods.common.finite import StepValues
from upo.methods.common.term import LossTerm
from upo.models.logps import ResponseLogps

NAN, INF = float("nan"), float("inf")


class Breaks(pl.Callback):
    """Puts a value into a model before the step of this number."""

    def __init__(self, what: str, at: int, value: float):
        self.what, self.at, self.value = what, at, value

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == self.at:
            model = pl_module.policy if self.what == "policy" else pl_module.reference.load_model()
            if self.what == "gradient":
                next(pl_module.policy.parameters()).register_hook(lambda g: torch.full_like(g, self.value))
            else:
                with torch.no_grad():
                    next(model.parameters()).fill_(self.value)
            self.before = flat(pl_module.policy)


@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        ("policy", NAN, "step 2: a log-prob of the policy is nan"),
        ("reference", NAN, "step 2: a log-prob of the reference is nan"),
        ("gradient", INF, "step 2: the gradient's norm is inf"),
        ("gradient", NAN, "step 2: the gradient's norm is nan"),
    ],
)
def test_the_run_stops_at_the_step_and_names_the_first_wrong_value(what, value, words, tmp_path):
    breaks, method = Breaks(what, 2, value), make(DPO)
    with pytest.raises(RunFailed, match=words):
        fit(method, tmp_path, breaks)
    assert torch.equal(flat(method.policy), breaks.before) or (value != value and what == "policy"), "no update"


def test_a_validation_that_is_no_number_ends_the_run(tmp_path):
    data = PreferenceData((Source("hh", path=pairs_file(tmp_path)),), validation=4, max_length=256, pairs_per_step=2)
    method = make(SFT)
    method.configure_model()
    with torch.no_grad():
        next(method.policy.parameters()).fill_(NAN)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(RunFailed, match=r"validation after 0 steps: loss, .* not finite"):
        trainer.validate(method, datamodule=data)


def test_a_scale_of_fp16_may_overflow_for_a_step(tmp_path):
    """GradScaler leaves such a step out and halves the scale: no reason to stop."""
    method = make(SFT)
    method.make_optimizer = lambda groups: torch.optim.SGD(groups, lr=0.1)
    data = PreferenceData((Source("hh", path=pairs_file(tmp_path)),), validation=0, max_length=256, pairs_per_step=4)
    trainer = pl.Trainer(
        max_steps=2, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**120))],
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    method.configure_model()
    before = flat(method.policy)
    trainer.fit(method, datamodule=data)
    assert not trainer.callback_metrics["train/grad_norm"].isfinite(), "the test needs an overflow"
    assert torch.equal(flat(method.policy), before)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("rewards", "an auxiliary reward is inf"),
        ("reference_logps", "a log-prob of the reference is inf"),
        ("logps", "a log-prob of the policy is inf"),
        ("term", "the term `auxiliary` is inf"),
        ("norm", "the gradient's norm is inf"),
    ],
)
def test_what_comes_first_is_named(broken, words, tmp_path):
    """Values of two micro-batches, the second of which is broken."""

    def part(name: str) -> torch.Tensor:
        return torch.tensor([1.0, INF if name == broken else 2.0])

    values = StepValues()
    for name in ("", broken):
        broken = name
        logps = ResponseLogps(
            part("logps"),
            torch.ones(2).long(),
            torch.zeros(2).long(),
            part("reference_logps"),
            part("rewards")[:, None],
        )
        values.add(part("the loss").sum(), {"auxiliary": LossTerm(part("term"), "responses")}, logps)
    with pytest.raises(RunFailed, match=words):
        values.check([torch.tensor(INF)], 3, tmp_path)  # what follows from it
    values.clear()
    values.check([torch.tensor(1.0)], 3, tmp_path)


def test_advantage_weights_far_out_stay_finite():
    """exp(lam (R - V)) is infinite from 88.8 on in float32."""
    far = upo.methods.upo.advantage_weights(torch.tensor([40.0, 0.0]), torch.zeros(2), lam=5.0)
    assert far.isfinite().all() and far[0] > 1e30 and far[1] == 1
