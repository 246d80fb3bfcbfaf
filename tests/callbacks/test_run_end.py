"""Callbacks have their say between training and evaluation."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from upo.callbacks.run_end import RunCallback, TrainedRun
from upo.cli.main import main
from upo.evaluation.evaluation import Evaluation

CONFIG = """
model:
  class_path: DPO
  init_args:
    policy: {path: "MODEL"}
    reference: FrozenReference
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
    scheduler: {class_path: torch.optim.lr_scheduler.ConstantLR, init_args: {factor: 1.0}}
data:
  sources: [{name: trl, path: pairs.jsonl}]
  validation: 0
  pairs_per_step: 1
  max_length: 64
evaluation: {}
trainer:
  max_steps: 3
  accelerator: cpu
  enable_progress_bar: false
  default_root_dir: run
  callbacks:
    - test_run_end.Witness
    - {class_path: upo.callbacks.reference_sync.ReferenceSync, init_args: {alpha: 1.0}}
    - {class_path: upo.callbacks.rebirth.RebirthTargets, init_args: {max_new_tokens: 4}}
    - test_run_end.Witness
"""


class Witness(RunCallback):
    """Notes what there is."""

    seen: list[dict[str, Any]] = []

    def on_run_end(self, run: TrainedRun) -> None:
        Witness.seen.append(state(run.method, run.folder))


def state(method: Any, folder: Path) -> dict[str, Any]:
    return {
        "files": set(os.listdir(folder)),
        "policy": flat(method.policy.model),
        "reference": flat(method.reference.model),
    }


def flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def test_after_training_and_before_evaluation_and_summary(stories260k, tmp_path, monkeypatch) -> None:
    """In the callbacks' order; the evaluation meets the reference of the start, and the targets are there."""
    evaluated = []

    def run(self: Any, method: Any, data: Any, folder: Path, **_: Any) -> dict[str, float]:
        evaluated.append(state(method, folder))
        return {}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Evaluation, "run", run)
    monkeypatch.setattr(Witness, "seen", [])
    line = '{"prompt": "Once", "chosen": " upon a time", "rejected": " there were %d"}\n'
    Path("pairs.jsonl").write_text("".join(line % i for i in range(3)))
    Path("run.yaml").write_text(CONFIG.replace("MODEL", stories260k))
    main(["--config", "run.yaml"])
    start = flat(AutoModelForCausalLM.from_pretrained(stories260k))
    (before, after), (then,) = Witness.seen, evaluated
    for moment in (before, after, then):
        assert torch.equal(moment["policy"], then["policy"]) and not torch.equal(moment["policy"], start)
        assert "checkpoints" in moment["files"] and "summary.json" not in moment["files"]
    assert not torch.equal(before["reference"], start) and "rebirth.jsonl" not in before["files"]
    for moment in (after, then):
        assert torch.equal(moment["reference"], start) and "rebirth.jsonl" in moment["files"]
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize("strategy", ["Sharded", "FSDPStrategy"])
def test_sharded_strategies_are_known(strategy: str) -> None:
    from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

    from upo.parallel.sharding import is_sharded
    from upo.parallel.strategy import Sharded

    made = {"Sharded": Sharded, "FSDPStrategy": FSDPStrategy}[strategy]()
    assert is_sharded(made) and not is_sharded(DDPStrategy()) and not is_sharded(SingleDeviceStrategy())
