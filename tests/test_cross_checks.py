"""Losses against Liger's, and the first 20 losses of training against those of TRL's trainers.

TRL comes with `pip install "upo[bench]"`, Liger with `upo[liger]` or, as in `.ci/run`, without its dependency triton: a
compiler for GPUs of 300 MB, which its losses do not need. TRL gets our token ids and KTO's mismatched responses, so
that rows, order and partners are the same; micro-batches are not, ours are several. Left out where TRL 1.16 computes
something else: smoothed DPO (ignored there), summed IPO, BCO on pairs (without delta), WPO (without the bound).
"""

import gzip
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from attrs import evolve
from losses import draws

import upo.methods
from upo.data.module import PreferenceData
from upo.data.rounds import Split
from upo.data.source import Source
from upo.data.views import View
from upo.functional.divergences import Alpha, JensenShannon
from upo.methods import apo_anchored, cpo, discopop, dpo, exo, kto, nca, orpo, rdpo_robust, rso_hinge, simpo, sppo
from upo.methods.common.base import Method
from upo.methods.common.ranges import FlipRate, Smoothing
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

PAIRS, STEPS, PER_STEP = 80, 20, 4
LR = 1e-4

# ---- Liger -----------------------------------------------------------------------------------------------------------

NO_LIGER = "no Liger here; pip install --no-deps liger-kernel (triton, its dependency, is for GPUs)"
DPO_FAMILY = {
    "sigmoid": (lambda w, r: dpo.dpo_loss(w, r, beta=0.3), {}),
    "hinge": (lambda w, r: rso_hinge.rso_hinge_loss(w, r, gamma=0.3), {}),
    "robust": (lambda w, r: rdpo_robust.robust_dpo_loss(w, r, beta=0.3, flip_rate=0.2), {"label_smoothing": 0.2}),
    "exo_pair": (lambda w, r: exo.exo_loss(w, r, beta=0.3, eps=0.01), {"label_smoothing": 0.01}),
    "nca_pair": (lambda w, r: nca.nca_pair_loss(w, r, beta=0.3), {}),
    "sppo_hard": (
        lambda w, r: sppo.sppo_loss(w, r, torch.ones_like(w), torch.zeros_like(r), beta=0.3),
        {},
    ),
    "apo_zero": (lambda w, r: apo_anchored.apo_zero_loss(w, r, beta=0.3), {}),
    "apo_down": (lambda w, r: apo_anchored.apo_down_loss(w, r, beta=0.3), {}),
    "discopop": (lambda w, r: discopop.discopop_loss(w, r, beta=0.3, tau=0.05), {"discopop_tau": 0.05}),
}


def values_and_gradients(loss: Any, *inputs: torch.Tensor) -> list[torch.Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_same(ours: Any, theirs: Any, *inputs: torch.Tensor) -> None:
    pairs = zip(values_and_gradients(ours, *inputs), values_and_gradients(theirs, *inputs), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)  # Liger's own eps is a float32


@pytest.mark.parametrize("name", DPO_FAMILY)
def test_losses_of_log_ratios_equal_ligers(name: str) -> None:
    kernel = pytest.importorskip("liger_kernel.chunked_loss.dpo_loss", reason=NO_LIGER).LigerFusedLinearDPOFunction
    ours, options = DPO_FAMILY[name]
    w, r, ref_w, ref_r = draws(4, 7, scale=4.0)
    labels = torch.zeros(14, 3)  # Liger divides by half its rows
    assert_same(
        lambda w, r: ours(w - ref_w, r - ref_r).mean(),
        lambda w, r: kernel.preference_loss_fn(w, r, labels, ref_w, ref_r, beta=0.3, loss_type=name, **options)[0],
        w, r,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "kernel", "ours", "options"),
    [
        ("cpo_loss", "CPO", lambda w, r: cpo.cpo_loss(w, r, beta=0.3), {"beta": 0.3}),
        ("simpo_loss", "SimPO", lambda w, r: simpo.simpo_loss(w, r, beta=2.0, gamma=1.0), {"beta": 2.0, "gamma": 1.0}),
        ("orpo_loss", "ORPO", lambda w, r: 0.1 * orpo.orpo_loss(w, r), {"beta": 0.1}),
    ],
    ids=["CPO", "SimPO", "ORPO"],
)
def test_losses_without_a_reference_equal_ligers(module: str, kernel: str, ours: Any, options: dict) -> None:
    module_ = pytest.importorskip(f"liger_kernel.chunked_loss.{module}", reason=NO_LIGER)
    function = getattr(module_, f"LigerFusedLinear{kernel}Function").preference_loss_fn
    means = -draws(2, 7, scale=2.0).abs() - 0.01
    assert_same(lambda w, r: ours(w, r).mean(), lambda w, r: function(w, r, torch.zeros(14, 3), **options)[0], *means)


def test_kto_equals_ligers() -> None:
    kernel = pytest.importorskip("liger_kernel.chunked_loss.kto_loss", reason=NO_LIGER).LigerFusedLinearKTOFunction
    logps, reference = draws(2, 9, scale=4.0)
    desirable, z0 = torch.arange(9) % 3 > 0, torch.tensor(0.7, dtype=torch.float64)
    assert_same(
        lambda x: kto.kto_loss(x - reference, desirable, z0, beta=0.3).mean(),
        lambda x: kernel.preference_loss_fn(x, desirable, torch.zeros(9, 3), reference, beta=0.3, kl=z0)[0],
        logps,
    )


# ---- TRL -------------------------------------------------------------------------------------------------------------

TRL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "DPO": ({"beta": 0.1}, {"loss_type": ["sigmoid"]}),
    "RSOHinge": ({"gamma": 0.05}, {"loss_type": ["hinge"], "beta": 0.05}),
    "IPOAveraged": ({"tau": 0.5}, {"loss_type": ["ipo"], "beta": 0.5}),
    "EXO": ({"beta": 0.5, "eps": Smoothing(1e-3)}, {"loss_type": ["exo_pair"], "beta": 0.5, "label_smoothing": 1e-3}),
    "NCA": ({"beta": 0.1}, {"loss_type": ["nca_pair"]}),
    "RobustDPO": ({"flip_rate": FlipRate(0.2)}, {"loss_type": ["robust"], "label_smoothing": 0.2}),
    "SPPOHard": ({"beta": 0.05}, {"loss_type": ["sppo_hard"], "beta": 0.05}),
    "AOTPaired": ({"beta": 0.1}, {"loss_type": ["aot"]}),
    "AOTUnpaired": ({"beta": 0.1}, {"loss_type": ["aot_unpaired"]}),
    "APOZero": ({}, {"loss_type": ["apo_zero"]}),
    "APODown": ({}, {"loss_type": ["apo_down"]}),
    "DiscoPOP": ({"tau": 0.5}, {"loss_type": ["discopop"], "beta": 0.05, "discopop_tau": 0.5}),
    "LNDPO": ({}, {"loss_type": ["sigmoid_norm"], "beta": 5.0}),
    "FDPO": ({"divergence": JensenShannon()}, {"f_divergence_type": "js_divergence"}),
    "FDPO alpha": (
        {"divergence": Alpha(0.3)},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ),
    "KTO": ({"desirable_weight": 1.3}, {"desirable_weight": 1.3}),
    "KTOZero": ({}, {"loss_type": "apo_zero_unpaired"}),
}
"""Our arguments and TRL's; the settings move losses visibly within 20 steps."""


@pytest.fixture(scope="module")
def hh_pairs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of short single-turn pairs of HH, each with a prompt of its own."""
    real = shared / "data/hh/helpful-base.test.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(real.read_bytes()).decode().split("\n") if line]
    turns = {r["chosen"].partition("\n\nAssistant:")[0]: r for r in rows if r["chosen"].count("Human:") == 1}
    rows = sorted(turns.values(), key=lambda r: len(r["chosen"]) + len(r["rejected"]))[10:]
    file = tmp_path_factory.mktemp("hh") / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[: PAIRS + 10]), encoding="utf-8")
    return str(file)


class InOrder(PreferenceData):
    """The units as they come, whole steps only."""

    def prepare(self, tokenizer: Any, view: View, *args: Any, **kwargs: Any) -> None:
        super().prepare(tokenizer, view, *args, **kwargs)
        units = self.read.train.units
        assert len(units) >= PAIRS
        units = [evolve(unit, groups=unit.own) for unit in units[:PAIRS]]
        if view.pairs_up:
            others = units[3:] + units[:3]
            units = [view.join(unit, other, self.max_length) for unit, other in zip(units, others, strict=True)]
        self.read = evolve(self.read, train=Split.of(units, view))
        self.use(self.read)

    def train_dataloader(self) -> Any:
        return self.loader(self.train, shuffle=False)


def our_losses(kind: type[Method], options: dict, stories260k: str, file: str) -> tuple[list[float], PreferenceData]:
    method = kind(
        Policy(path=stories260k),
        FrozenReference(),
        optimizer=lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.0),
        scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
        **options,
    )
    data = InOrder((Source("hh", path=file),), validation=0, max_length=256, pairs_per_step=PER_STEP,
                   tokens_per_microbatch=350)  # fmt: skip
    found: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            found.append(trainer.callback_metrics["train/loss"].item())

    pl.Trainer(
        max_steps=STEPS, max_epochs=1, accelerator="cpu", logger=False, callbacks=[Watch()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    ).fit(method, datamodule=data)  # fmt: skip
    assert len(next(iter(data.train_dataloader())).micro_batches) > 1
    return found, data


def their_losses(options: dict, data: PreferenceData, stories260k: str, folder: Path, of_kto: bool) -> list[float]:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "KTO" if of_kto else "DPO"
    found: list[float] = []

    class Tokenised(getattr(trl, f"{name}Trainer")):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            found.append(loss.item())
            return loss

    rows = []
    for unit in data.train.units:
        if not of_kto:
            chosen, rejected = unit.responses
            rows.append({"prompt_ids": unit.prompt, "chosen_ids": chosen, "rejected_ids": rejected})
            continue
        others = unit.mismatched[0].responses if unit.mismatched else unit.responses
        for ids, other, known in zip(unit.responses, others, unit.example.responses, strict=True):
            row = {"prompt_ids": unit.prompt, "completion_ids": ids, "KL_completion_ids": other}
            rows.append(row | {"label": known.desirable})
    settings = getattr(trl, f"{name}Config")(
        output_dir=str(folder), per_device_train_batch_size=PER_STEP * (2 if of_kto else 1), max_steps=STEPS,
        learning_rate=LR, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0, optim="adamw_torch",
        gradient_checkpointing=False, max_length=None, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, train_sampling_strategy="sequential",
        **options,
    )  # fmt: skip
    model, reference = (AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32) for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = Tokenised(
        model, reference, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("DPO", "KTO") else pytest.mark.nightly) for n in TRL]
)
def test_the_first_losses_are_those_of_trls_trainer(name: str, stories260k: str, hh_pairs: str, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason='pip install "upo[bench]"')
    ours, theirs = TRL[name]
    kind = getattr(upo.methods, name.split()[0])
    losses, data = our_losses(kind, ours, stories260k, hh_pairs)
    expected = their_losses(theirs, data, stories260k, tmp_path, of_kto=name.startswith("KTO"))
    assert len(losses) == len(expected) == STEPS
    gap = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(losses, expected, strict=True))
    print(f"{name}: largest gap {gap:.1e}, losses {losses[0]:.4f} to {losses[-1]:.4f}")
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert max(losses) - min(losses) > 1e-2, "training moves"
