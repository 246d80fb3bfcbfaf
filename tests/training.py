"""A few optimizer steps of a method on eight tiny pairs, as the Trainer takes them; also cut off and resumed."""

import json
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import PAIRS

from upo.data.module import PreferenceData
from upo.data.source import Source
from upo.methods.common.base import Method
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


def make(kind: type[Method], lr: float = 1e-2, **options: object) -> Method:
    if kind.needs.reference is not None:
        options.setdefault("reference", FrozenReference())
    torch.manual_seed(0)
    return kind(
        options.pop("policy", None) or Policy(config=CONFIG, tokenizer="tiny.tokenizer"),
        optimizer=lambda p: torch.optim.AdamW(p, lr=lr),
        scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
        **options,
    )


def pairs_file(folder: Path) -> str:
    file, head = folder / "pairs.jsonl", "\n\nHuman: {}\n\nAssistant: {}"
    rows = [{"chosen": head.format(p, c), "rejected": head.format(p, r)} for p, c, r in PAIRS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


class Watch(pl.Callback):
    """Losses of each step, and the reference that it was measured against."""

    def __init__(self, stop_at: int | None = None):
        self.losses: dict[int, float] = {}
        self.references: dict[int, torch.Tensor] = {}
        self.policies: dict[int, torch.Tensor] = {}
        self.stop_at = stop_at

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == self.stop_at:
            raise RuntimeError("killed")
        self.policies[trainer.global_step] = flat(pl_module.policy)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.losses[trainer.global_step - 1] = trainer.callback_metrics["train/loss"].item()
        if pl_module.reference is not None:
            self.references[trainer.global_step - 1] = flat(pl_module.reference.load_model())


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def trainer_for(*callbacks: pl.Callback, steps: int) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
    )  # fmt: skip


def fit(
    method: Method,
    folder: Path,
    *callbacks: pl.Callback,
    steps: int = 6,
    stop_at: int | None = None,
    save_every: int = 1000,
    ckpt_path: str | None = None,
    pairs: str | None = None,
    source: str = "hh",
    **data: object,
) -> SimpleNamespace:
    """Two pairs a step, four steps an epoch."""
    options = {"validation": 0, "max_length": 256, "pairs_per_step": 2, "tokens_per_microbatch": 4000} | data
    module = PreferenceData((Source(source, path=pairs or pairs_file(folder)),), **options)
    watch = Watch(stop_at)
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=save_every, save_top_k=-1)
    trainer = trainer_for(*callbacks, watch, save, steps=steps)
    torch.manual_seed(1)
    try:
        trainer.fit(method, datamodule=module, ckpt_path=ckpt_path, weights_only=True)
    except RuntimeError as error:
        assert str(error) == "killed"
    return SimpleNamespace(watch=watch, trainer=trainer, method=method, data=module)


def resumed_equals_uninterrupted(kind, callback, folder: Path, saved: int = 3, steps: int = 6, **options) -> None:
    """Killed two steps after a checkpoint and continued with new objects: bit for bit the uninterrupted run.

    Args:
        callback: makes a fresh callback.
    """
    whole = fit(make(kind), folder, callback(), steps=steps, **options).watch
    assert len(whole.losses) == steps
    fit(make(kind), folder, callback(), steps=steps, stop_at=saved + 2, save_every=saved, **options)
    ckpt = str(folder / f"step={saved}.ckpt")
    late = fit(make(kind), folder, callback(), steps=steps, ckpt_path=ckpt, **options).watch
    assert sorted(late.losses) == list(range(saved, steps))
    for step, loss in late.losses.items():
        assert loss == whole.losses[step], step
        assert torch.equal(late.references[step], whole.references[step]), step
