"""FSDP2 on CPU ranks, through the command line: the losses of one device, and checkpoints that go anywhere.

Tiny Llamas, pairs in uneven micro-batches with fillers, norm clipping; the value head and the listwise batch included.
"""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_trajectories import losses
from training import pairs_file

from upo.callbacks.checkpoint_io import latest, read_folder
from upo.checkpoint import find_checkpoint, load_model, load_run, read_checkpoint
from upo.errors import UserError
from upo.export import export

MODEL = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip


def sharded(**options: object) -> tuple[str, ...]:
    """Arguments of a sharded run; all in float32, so that it equals the others."""
    value = {"class_path": "upo.strategy.Sharded", "init_args": {"param_dtype": None, **options}}
    return ("--trainer.strategy", json.dumps(value))


@pytest.fixture
def train(upo_fit, tmp_path: Path) -> Callable[..., list[float]]:
    """`train(method, folder, *args, ranks=1, tied=True, **options)`: losses of ten steps on eight pairs."""
    file = pairs_file(tmp_path)

    def run(
        method: str, folder: str, *args: str, ranks: int = 1, tied: bool = True, upo: bool = False, **run_options
    ) -> list[float]:
        policy = {"config": MODEL | {"tie_word_embeddings": tied}, "tokenizer": "tiny.tokenizer"}
        source = {"name": "tiny.scored_lists" if method == "NCAListwise" else "hh", "path": file}
        init = {"policy": policy, "reference": "FrozenReference"}
        init |= {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}}}
        init |= {"scheduler": {"class_path": "torch.optim.lr_scheduler.ConstantLR", "init_args": {"factor": 1.0}}}
        data = {"sources": [source], "validation": 0, "max_length": 256, "pairs_per_step": 4}
        data |= {"tokens_per_microbatch": 150, "rewards_cache": str(tmp_path / "cache")}
        if method == "UPO":
            init |= {"reward_weights": {"length": 0.01}, "value_dropout": 0.0, "value_warmup_steps": 2}
            data |= {"rewards": {"length": "Words"}}
        trainer = {"max_steps": 10, "max_epochs": -1, "gradient_clip_val": 1, "accelerator": "cpu", "devices": ranks}
        trainer |= {"enable_progress_bar": False, "default_root_dir": folder}
        config = {"model": {"class_path": method, "init_args": init}, "data": data, "trainer": trainer}
        path = tmp_path / f"{folder}.yaml"
        path.write_text(json.dumps(config))
        done = upo_fit("--config", str(path), *args, ranks=ranks, **run_options)
        assert done.code == 0, done.text
        return losses(tmp_path / folder)

    return run


CASES = [("DPO", True), ("KTO", False), ("UPO", True), ("NCAListwise", False)]


@pytest.mark.parametrize(("method", "tied"), CASES)
def test_two_ranks_equal_one(method: str, tied: bool, train) -> None:
    expected = train(method, "one", tied=tied)
    assert len(expected) == 10 and len(set(expected)) > 5
    assert train(method, "two", *sharded(), ranks=2, tied=tied) == pytest.approx(expected, abs=1e-5)
