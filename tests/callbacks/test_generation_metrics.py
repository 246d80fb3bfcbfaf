"""What the policy writes as a metric: it chooses the best checkpoint, which evaluate, export and compare then take."""

import json
from functools import partial
from pathlib import Path

import mistakes
import pytest
import torch
import yaml

from upo.callbacks.generation_metrics import GenerationMetrics
from upo.check.__main__ import main as check
from upo.cli.main import main as fit
from upo.compare import main as compare
from upo.evaluate import main as evaluate
from upo.export import main as export
from upo.models.checkpoint import load_model
from upo.models.checkpoint_files import find_checkpoint
from upo.rewards import Words

pytestmark = pytest.mark.turns(2)

SHAPE = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 96, "initializer_range": 0.2,
}  # fmt: skip
CALLBACK = {
    "class_path": "upo.callbacks.generation_metrics.GenerationMetrics",
    "init_args": {"prompts": 3, "max_new_tokens": 4, "judge": "Words"},
}
CONFIG = {
    "model": {
        "class_path": "DPO",
        "init_args": {
            "policy": {"config": SHAPE, "tokenizer": "upo.data.sources.world.tokenizer"},
            "reference": "FrozenReference",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
    },
    "data": {
        "sources": [{"name": "world", "options": {"n": 24}}],
        "validation": 4, "max_length": 96, "pairs_per_step": 4, "rewards": {"length": "Words"},
    },
    "trainer": {
        "default_root_dir": "run", "max_steps": 4, "accelerator": "cpu", "enable_progress_bar": False,
        "val_check_interval": 1, "callbacks": [CALLBACK],
    },
    "checkpoint": {"monitor": "val/generated/rewards/length", "mode": "max", "every_n_train_steps": 100},
    "evaluation": {"prompts": 3, "max_new_tokens": 4, "judge": "Words"},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is finished; step 2 wrote the longest texts, so they say."""
    folder = tmp_path_factory.mktemp("generated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        measure, values = GenerationMetrics.measure, iter([1.0, 9.0, 5.0, 5.0])
        patch.setattr(
            GenerationMetrics, "measure", lambda self, *args: measure(self, *args) | {"rewards/length": next(values)}
        )
        Path("run.yaml").write_text(yaml.safe_dump(CONFIG))
        fit(["--config", "run.yaml"])
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def test_what_is_logged(here: Path) -> None:
    head = Path("run/metrics.csv").read_text().splitlines()[0].split(",")
    found = {name.removeprefix("val/generated/") for name in head if name.startswith("val/generated/")}
    assert found == {"rewards/length", "tokens", "words", "repetition", "ended", "win_rate_vs_chosen"}
    promised = GenerationMetrics(judge=Words()).names({"length": Words()}, None)
    assert set(promised) == {f"val/generated/{name}" for name in found}
    assert "val/generated/objective" in GenerationMetrics().names({}, {"length": 1.0})


def test_the_values_are_those_of_an_evaluation_with_the_same_settings(here: Path) -> None:
    """Of the last step's policy: same prompts, same random numbers."""
    rows = [line.split(",") for line in Path("run/metrics.csv").read_text().splitlines()]
    last = {name: x for name, x in zip(rows[0], rows[-1], strict=True) if x}
    figures = json.loads(Path("run/evaluation.json").read_text())["metrics"]
    for name in ("tokens", "words", "repetition", "ended", "win_rate_vs_chosen"):
        assert float(last[f"val/generated/{name}"]) == pytest.approx(figures[f"policy/{name}"], abs=1e-6), name


def test_training_is_the_same_without(here: Path) -> None:
    """No random number is drawn from what training draws from."""
    trainer = {name: x for name, x in CONFIG["trainer"].items() if name != "callbacks"}
    plain = {"model": CONFIG["model"], "data": CONFIG["data"], "trainer": trainer}
    Path("plain.yaml").write_text(yaml.safe_dump(plain))
    fit(["--config", "plain.yaml", "--trainer.default_root_dir", "plain"])
    ends = [torch.load(f"{run}/checkpoints/step=4.ckpt", weights_only=True) for run in ("run", "plain")]
    for name, x in ends[0]["state_dict"].items():
        assert torch.equal(x, ends[1]["state_dict"][name]), name


@pytest.mark.slow
def test_best_and_last_of_a_run(here: Path, capsys: pytest.CaptureFixture) -> None:
    """Two checkpoints, two exports, two evaluations side by side, two comparisons."""
    assert (Path("run/checkpoints/best.ckpt")).resolve().name == "step=2.ckpt"
    best = find_checkpoint(Path("run"), "best")
    assert best is not None and best.name == "step=2.ckpt"
    export(["run", "last"])
    export(["run", "best", "--checkpoint", "best"])
    export(["run/checkpoints/best.ckpt", "named"])
    weights = [load_model(folder)[0].get_input_embeddings().weight for folder in ("last", "best", "named")]
    assert not torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])
    assert "step=2.ckpt, 2 optimizer steps" in Path("best/README.md").read_text()
    before = Path("run/evaluation.json").read_bytes(), Path("run/summary.json").read_bytes()
    refused = partial(mistakes.refused, compare, capsys)
    assert "upo.evaluate run --checkpoint best" in refused("run", "--checkpoint", "best", "--out", "b")
    evaluate(["run", "--checkpoint", "best"])
    assert before == (Path("run/evaluation.json").read_bytes(), Path("run/summary.json").read_bytes())
    assert {"evaluation.json", "samples.jsonl", "report.md"} <= {path.name for path in Path("run/best").iterdir()}
    compare(["run", "--out", "a"])
    compare(["run", "--checkpoint", "best", "--out", "b"])
    rows = [json.loads(Path(out, "comparison.json").read_text())["rows"][1]["figures"] for out in ("a", "b")]
    assert rows[0]["kl"]["mean"] != rows[1]["kl"]["mean"]
    assert "one checkpoint" in mistakes.refused(export, capsys, str(best), "x", "--checkpoint", "best")


def test_check_knows_the_metric(here: Path, capsys: pytest.CaptureFixture) -> None:
    check(["run.yaml"])
    text = mistakes.refused(check, capsys, "run.yaml", "--checkpoint.monitor", "val/generated/rewards/lenght")
    assert "did you mean `val/generated/rewards/length`?" in text
    text = mistakes.refused(check, capsys, "run.yaml", "--trainer.callbacks", "null")
    assert "no metric is called `val/generated/rewards/length`" in text
