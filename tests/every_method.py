"""What the tests of every method share: eight pairs, and a run on them for each method, trained once.

A new method is tested as soon as `upo.methods.__all__` names it; what is special about it stands in its own test file
(see cases.py). The methods of `CORE` train until they know the pairs in every test run, the others in the slow one.
"""

import copy
import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from cases import case_of
from lightning.pytorch.strategies import Strategy
from rotation import taking_turns
from tiny import PAIRS

import upo.methods
from upo.data.module import PreferenceData
from upo.data.source import Source
from upo.methods.common.base import Method
from upo.methods.common.families import ListwiseMethod, PairwiseMethod, UnpairedMethod
from upo.methods.common.likelihood import ChosenLikelihood
from upo.models.policy import Policy
from upo.models.reference import FrozenReference
from upo.rewards.length import Words

CORE = ("SFT", "DPO", "KTO", "UPO", "UPODPO")
LONG, SHORT = 40, 3
PREFERENCE = {
    *(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins", "ties")),
    "logps/chosen",
    "logps/rejected",
}


def steps_of(kind: type[Method]) -> int:
    return LONG if kind.__name__ in CORE else SHORT


def metrics_of(kind: type[Method]) -> set[str]:
    """What it logs beside loss, gradient norm and learning rate."""
    family = PREFERENCE if issubclass(kind, PairwiseMethod | UnpairedMethod | ListwiseMethod) else set()
    likelihood = {"loss/preference", "loss/nll"} if issubclass(kind, ChosenLikelihood) else set()
    return family | likelihood | set(case_of(kind).metrics)


METHODS = [pytest.param(getattr(upo.methods, name), id=name) for name in upo.methods.__all__]
_SIXTH = taking_turns(METHODS, days=6, suite=pytest.mark.slow, rest=pytest.mark.nightly)
CORE_OR_SIXTH = [x if x.id in CORE else y for x, y in zip(METHODS, _SIXTH, strict=True)]
"""A sixth of the other methods is tested in the slow run of a day, all of them at night."""
CORE_AND_THIRD = taking_turns(METHODS, always=CORE)
"""A third of the other methods is tested in the default run of a day, all of them in the slow one."""


@pytest.fixture(scope="session")
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of eight short pairs of HH, or of pairs like them where the real ones are missing."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    try:
        real = request.getfixturevalue("shared") / "data/hh/helpful-base.test.jsonl.gz"
        rows = [json.loads(line) for line in gzip.decompress(real.read_bytes()).decode().split("\n") if line]
        turns = [r for r in rows if r["chosen"].count("Human:") == 1]
        rows = sorted(turns, key=lambda r: len(r["chosen"]) + len(r["rejected"]))[10:18]
    except pytest.skip.Exception:
        head, more = "\n\nHuman: {}\n\nAssistant: {}", "I am quite sure, and here it is once more:"  # as long as HH's
        texts = [(p, f"{chosen} {more} {chosen}", f"{rejected} Who knows?") for p, chosen, rejected in PAIRS]
        rows = [{"chosen": head.format(p, chosen), "rejected": head.format(p, other)} for p, chosen, other in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


class Watch(pl.Callback):
    """Metrics of each step, and which parameters had a gradient."""

    def __init__(self):
        self.rows: list[dict[str, float]] = []
        self.with_gradient: set[str] = set()
        self.moved: set[str] = set()

    def on_fit_start(self, trainer, pl_module):
        self.before = copy.deepcopy(pl_module.state_dict())
        self.reference = reference_state(pl_module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.with_gradient |= {n for n, p in pl_module.named_parameters() if p.grad is not None and p.grad.any()}

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.rows.append({name: float(x) for name, x in trainer.callback_metrics.items()})

    def on_train_end(self, trainer, pl_module):
        after = pl_module.state_dict()
        self.moved = {name for name, x in self.before.items() if not torch.equal(x, after[name])}


def reference_state(method: Method) -> dict[str, torch.Tensor]:
    if method.reference is None:
        return {}
    return copy.deepcopy(method.reference.load_model().state_dict())


def make(kind: type[Method], lr: float = 1e-2, **further: object) -> Method:
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"intermediate_size": 48, "max_position_embeddings": 256}
    options = dict(case_of(kind).options) | further
    if kind.needs.reference is not None:
        options["reference"] = FrozenReference()
    torch.manual_seed(0)
    return kind(
        Policy(config=config, tokenizer="tiny.tokenizer"),
        optimizer=lambda p: torch.optim.AdamW(p, lr=lr),
        scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5),
        **options,
    )


def fit(
    kind: type[Method],
    pairs: str,
    folder: Path,
    steps: int = LONG,
    lr: float = 1e-2,
    precision: str = "32-true",
    strategy: Strategy | str = "auto",
    devices: int = 1,
    options: Mapping[str, object] = {},
    **data: object,
) -> SimpleNamespace:
    """One step is all eight pairs, in several micro-batches.

    Args:
        options: of the method, beside those of its case.
    """
    case, method, watch = case_of(kind), make(kind, lr, **options), Watch()
    module = PreferenceData(
        (Source(case.source, path=pairs),),
        rewards={"length": Words()},
        rewards_cache=str(folder / "cache"),
        **{"validation": 0, "max_length": 256, "pairs_per_step": 8, "tokens_per_microbatch": 600}
        | dict(case.data)
        | data,
    )
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", gradient_clip_val=1.0, logger=False, callbacks=[watch],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, precision=precision, strategy=strategy, devices=devices,
    )  # fmt: skip
    torch.manual_seed(1)
    trainer.fit(method, datamodule=module)
    file = folder / "last.ckpt"
    trainer.save_checkpoint(file)
    return SimpleNamespace(method=method, data=module, watch=watch, rows=watch.rows, file=file, trainer=trainer)


FINISHED: dict[type[Method], SimpleNamespace] = {}
"""The runs of this process; several files of tests read them."""


@pytest.fixture
def run(pairs: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[type[Method]], SimpleNamespace]:
    """A finished run by method, trained once."""

    def get(kind: type[Method]) -> SimpleNamespace:
        if kind not in FINISHED:
            FINISHED[kind] = fit(kind, pairs, tmp_path_factory.mktemp(kind.__name__), steps_of(kind))
        return FINISHED[kind]

    return get
