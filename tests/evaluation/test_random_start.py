"""A policy that begins with random weights: its reference is made again from the seed, or the run is not read."""

from pathlib import Path

import pytest
import torch

from upo.cli.main import main
from upo.errors import UserError
from upo.evaluation.runs import load_run
from upo.models.loading import START_SHA256

CONFIG = """
seed_everything: 3
model:
  class_path: DPO
  init_args:
    policy:
      config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
               num_key_value_heads: 2, max_position_embeddings: 128}
      tokenizer: upo.data.sources.world.tokenizer
    reference: FrozenReference
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-2}}
data: {sources: [{name: world, options: {n: 40}}], validation: 8, max_length: 96, pairs_per_step: 16}
trainer: {default_root_dir: run, max_steps: 2, accelerator: cpu, enable_progress_bar: false}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random_start")
    (folder / "config.yaml").write_text(CONFIG)
    main(["--config", str(folder / "config.yaml"), "--trainer.default_root_dir", str(folder / "run")])
    return folder / "run"


def start(run: Path) -> torch.Tensor:
    method, _, _ = load_run(run)
    model = method.reference.load_model()  # type: ignore[union-attr]
    return torch.cat([p.flatten() for p in model.parameters()])  # type: ignore[union-attr]


def test_the_reference_is_the_trained_ones_start(run: Path) -> None:
    """Whatever was drawn before; what is drawn behind it does not change."""
    torch.manual_seed(11)
    first, drawn = start(run), torch.rand(1)
    torch.manual_seed(12)
    assert torch.equal(start(run), first)
    torch.manual_seed(11)
    assert torch.equal(torch.rand(1), drawn)
    content = torch.load(run / "checkpoints/step=2.ckpt")
    trained = torch.cat([x.flatten() for name, x in content["state_dict"].items() if "policy" in name])
    assert first.shape == trained.shape and 0 < (first - trained).abs().max() < 0.05, "two steps of Adam away"


def test_another_start_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a version of torch that draws other numbers."""
    content = torch.load(run / "checkpoints/step=2.ckpt")
    assert len(content[START_SHA256]) == 64
    monkeypatch.setattr("upo.models.reference.base_hash", lambda model: "0" * 64)
    with pytest.raises(UserError, match="copy of the policy's random start"):
        load_run(run)
