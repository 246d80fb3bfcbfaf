"""`python -m upo.check`: what it prints, what it refuses in one sentence, models that this machine cannot hold."""

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mistakes
import pytest
import tiny
import yaml
from tiny import PAIRS
from transformers import AutoConfig

from upo.check.__main__ import main
from upo.check.find import find
from upo.runtime import disk

pytestmark = pytest.mark.turns(3)

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
model:
  class_path: DPO
  init_args:
    policy:
      config: {model_type: llama, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 24,
        max_position_embeddings: 256}
      tokenizer: tiny.tokenizer
    reference: FrozenReference
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
    scheduler: {class_path: torch.optim.lr_scheduler.LinearLR, init_args: {start_factor: 0.5, total_iters: 3}}
data:
  sources: [{name: trl, path: pairs.jsonl}]
  validation: 2
  pairs_per_step: 2
  max_length: 128
trainer: {max_epochs: 3, accelerator: cpu, enable_progress_bar: false}
"""
LLAMA7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 2048,
}  # fmt: skip


refused = partial(mistakes.refused, main)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("run.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def paper(folder: Path) -> str:
    """A YAML that stands in for what the paper's experiments take from the hub."""
    policy = {"path": None, "config": LLAMA7B, "tokenizer": "tiny.tokenizer"}
    rewards = {"readability": "Readability", "safety": "Words"}
    data = {"sources": [{"name": "trl", "path": "pairs.jsonl"}], "validation": 2, "rewards": rewards}
    data["rewards_cache"] = str(folder / "cache")
    stand_in = {"model": {"init_args": {"policy": policy}}, "data": data, "evaluation": None}
    Path("stand_in.yaml").write_text(yaml.safe_dump(stand_in))
    return "stand_in.yaml"


def test_a_run_is_described_and_nothing_is_left_behind(folder: Path, capsys) -> None:
    before = sorted(folder.rglob("*"))
    main(["run.yaml", "--model.beta", "0.2"])
    text = " ".join(capsys.readouterr().out.split())
    assert sorted(folder.rglob("*")) == before
    for words in (
        "train pairs", "How", "response 1", "response 2", "are scored",  # the report, and an example
        "DPO", "0.69315 (train/loss)", "and 0.69315 is right",
        "about 6 pairs to train on, 2 held out", "about 9", "0.001, reached after 3 steps",
        "activations", "optimizer", "KV cache", "peak",
    ):  # fmt: skip
        assert words in text, words


def test_heads_beside_the_policy_are_counted(folder: Path, capsys) -> None:
    """Also SparsePO's, which has the shape of the reference: two layers of 16, and a bias each."""

    def trained(kind: str) -> int:
        Path("run.yaml").write_text(CONFIG.replace("DPO", kind))
        main(["run.yaml"])
        found = re.search(r"trained parameters\W+([\d,]+)", capsys.readouterr().out)
        return int(found[1].replace(",", ""))

    assert trained("SparsePO") - trained("DPO") == 2 * (16 + 1)
    assert trained("SPODegree") - trained("DPO") == 4 * (16 + 1), "degrees 0 to 3"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--model.betta", "1"], "did you mean `beta`?"),
        (["--model", "DPOO"], "did you mean `DPO`?"),
        (["--model.policy.tokenizer", "no/such/tokenizer.json"], "no tokenizer at `no/such/tokenizer.json`"),
        (["--data.sources", "[{name: trl, path: missing.jsonl}]"], "missing.jsonl"),
        (["--checkpoint.monitor", "val/rewards/accuracy"], "did you mean `val/rewards/accuracies`?"),
        (["--checkpoint.monitor", "val/loss", "--data.validation", "0"], "data.validation is 0"),
        (["--after", "[sft.yaml]"], "after: no such file sft.yaml"),
        (["--trainer.precision", "bf16-true"], "set policy.dtype"),
        (["--trainer.accumulate_grad_batches", "2"], "must be 1"),
        (["--gpu", "a100"], "did you mean `a100-"),
        (["--gpu", "h20"], "did you mean `h200`?"),
        (["--devices", "0"], "at least 1"),
    ],
)
def test_mistakes_give_one_sentence(args: list[str], expected: str, folder: Path, capsys) -> None:
    assert expected in refused(capsys, "run.yaml", *args)


def test_missing_files_and_columns(folder: Path, capsys) -> None:
    assert "give a config" in refused(capsys, "--devices", "2")
    assert "no such config: none.yaml" in refused(capsys, "none.yaml")
    Path("broken.yaml").write_text("model:\n\tclass_path: DPO\n")
    assert "broken.yaml, line 2 is no valid YAML" in refused(capsys, "broken.yaml")
    rows = [{"ask": p, "good": c, "bad": r} for p, c, r in PAIRS]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = refused(capsys, "run.yaml")
    assert "no usable example" in text and "`ask`, `good`, `bad`" in text


def test_an_adapter_is_tried_against_the_model_below_it(folder: Path, capsys) -> None:
    main(
        [
            "run.yaml",
            "--model.policy.adapter",
            "LoRA",
            "--model.policy.adapter.r",
            "2",
            "--model.reference",
            "AdapterReference",
        ]
    )
    text = " ".join(capsys.readouterr().out.split())
    assert "with its adapter off" in text and "0.69315 (train/loss)" in text
    trained = int(text.partition("trained parameters │ ")[2].split()[0].replace(",", ""))
    assert trained == 2 * 2 * (4 * 32 + 3 * 40), "two layers, r = 2: four maps 16 x 16, three 16 x 24"


def test_a_reference_that_differs_from_the_policy(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from upo.models.policy import Policy

    def changed(policy: Policy) -> Policy:
        twin = copy(policy)
        for p in twin.parameters():
            p.data.mul_(1.5)
        return twin

    copy = Policy.frozen_copy
    monkeypatch.setattr(Policy, "frozen_copy", changed)
    assert "policy and reference differ by" in refused(capsys, "run.yaml")


def test_seven_billion_parameters_on_eight_cards(paper: str, capsys) -> None:
    """The true shape is planned without its weights; a small model takes the step."""
    config = str(ROOT / "experiments/paper/llama7b_upo.yaml")
    main([config, paper, "--devices", "8", "--gpu", "a100-40gb"])
    text = " ".join(capsys.readouterr().out.split())
    assert "6,771,982,337" in text, "7B and UPO's value head"
    assert "a small random Llama" in text and "0.50000 (train/loss/preference)" in text
    assert "fits a100-40gb" in text and "names no strategy" in text
    assert "312 Tflop/s" in text


def test_a_batch_that_cannot_fit(folder: Path, capsys) -> None:
    """Two very wide layers; the table says what would help."""
    wide = ["--model.policy.config", str(LLAMA7B | {"hidden_size": 16384, "num_hidden_layers": 2})]
    text = refused(capsys, "run.yaml", *wide, "--gpu", "h100")
    assert "cannot fit h100" in text and len(text.splitlines()) == 1
    main(["run.yaml", *wide, "--gpu", "h100", "--devices", "8", "--trainer.strategy", "fsdp"])
    assert "fits h100" in capsys.readouterr().out


def test_checkpoints_that_the_disk_cannot_hold(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error where the run would begin, a note where it is planned for another machine; best and newest count."""
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    text = refused(capsys, "run.yaml")
    assert "checkpoints need" in text and "are free at runs/run; make room" in text
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    main(["run.yaml", "--gpu", "l4"])
    assert "are free at runs/run on this machine" in " ".join(capsys.readouterr().out.split())
    shown = []
    for args in ([], ["--checkpoint.monitor", "val/loss"], ["--checkpoint.save_top_k", "-1"]):
        main(["run.yaml", "--gpu", "l4", "--checkpoint.every_n_train_steps", "1", *args])
        shown.append(re.search(r"kept at a time (\d+)", capsys.readouterr().out)[1])
    assert shown == ["2", "3", "9"]


def test_an_earlier_stage_lends_its_model(folder: Path, capsys) -> None:
    """Its export is not there before it is trained."""
    first: dict[str, Any] = yaml.safe_load(CONFIG)
    Path("first.yaml").write_text(yaml.safe_dump(first))
    second = first | {"after": ["first.yaml"]}
    second["model"]["init_args"]["policy"] = {"path": "runs/first/export"}
    Path("second.yaml").write_text(yaml.safe_dump(second))
    main(["second.yaml"])
    assert "first.yaml trains it" in " ".join(capsys.readouterr().out.split())
    second["model"]["init_args"]["policy"] |= {"adapter": {"r": 2}, "activation_checkpointing": True}
    Path("second.yaml").write_text(yaml.safe_dump(second))
    found = find([Path("second.yaml")], [], None, None)
    assert 0 < found.shape.trained < found.shape.parameters / 5 and found.setting.checkpointing, "as the stage itself"
    assert found.cli.datamodule.pairs_per_step == 2 and not hasattr(found.cli.model.policy, "model")


@pytest.mark.slow
def test_every_run_of_a_study(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        {"name": "dpo", "config": "run.yaml", "grid": {"model.beta": [0.1, 0.3]}},
        {"name": "kto", "config": "run.yaml", "overrides": {"model.class_path": "KTO"}},
    ]
    Path("study.yaml").write_text(yaml.safe_dump({"folder": "runs/s", "seeds": [0, 1], "runs": runs}))
    main(["study.yaml", "--gpu", "l4"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("dpo_beta0.1", "dpo_beta0.3", "0.69315", "kto", "0.50000"):
        assert words in text
    with monkeypatch.context() as patch:
        patch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
        assert "checkpoints need" in refused(capsys, "study.yaml")
    runs.append({"name": "typo", "config": "run.yaml", "overrides": {"model.betta": 1}})
    Path("study.yaml").write_text(yaml.safe_dump({"folder": "runs/s", "runs": runs}))
    assert "1 of 4 runs of study.yaml cannot be started: typo" in refused(capsys, "study.yaml")


SHAPES = {
    "llama7b": {},
    "llama13b": {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 13824},
    "pythia1-4b": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    "pythia2-8b": {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 10240},
    "pythia6-9b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 16384},
}
"""Of the paper's models."""


@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=pytest.mark.slow if m == "pythia1-4b" else pytest.mark.nightly) for m in SHAPES],
)
def test_every_run_of_the_papers_study(model: str, paper: str, capsys) -> None:
    """On shapes without weights, where the study looks for the model; each method, and the ablations beside 13B."""
    shape = LLAMA7B | SHAPES[model]
    if model.startswith("pythia"):
        shape |= {"model_type": "gpt_neox", "vocab_size": 50304, "num_key_value_heads": None}
    folder = Path("ContextualAI", f"archangel_sft_{model}")
    AutoConfig.for_model(**shape).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    overlay = yaml.safe_load(Path(paper).read_text())
    del overlay["model"]
    Path(paper).write_text(yaml.safe_dump(overlay))
    study = yaml.safe_load((ROOT / "experiments/paper/study.yaml").read_text())
    models = study["runs"][0]["grid"]["model.policy.path"]
    assert str(folder) in models and len(models) == 5
    models[:] = [str(folder)]  # of all entries: they share it by its anchor
    here = []
    for entry in study["runs"]:
        entry["config"] = str(ROOT / "experiments/paper" / entry["config"])
        if entry.get("overrides", {}).get("model.policy.path", str(folder)) == str(folder):
            here.append(entry)
    assert len(here) == (14 if model == "llama13b" else 10)
    Path("study.yaml").write_text(yaml.safe_dump(study | {"runs": here}))
    main(["study.yaml", paper, str(ROOT / "experiments/hardware/fsdp_8gpu.yaml"), "--gpu", "a100-80gb"])
    text = capsys.readouterr().out
    for entry in here:
        assert entry["name"] in text, entry["name"]
