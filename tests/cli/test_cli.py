"""The command line: what a run leaves behind, what it refuses, and how it says so."""

import copy
import csv
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import mistakes
import pytest
import torch
import yaml

from upo.callbacks.metrics_csv import read_metrics
from upo.cli.main import main
from upo.cli.stages import follow, run_earlier_stages, stage_folder
from upo.errors import UserError

CONFIG = """
model:
  class_path: DPO
  init_args:
    policy: {path: "${oc.env:UPO_SHARED}/models/stories260k"}
    reference: FrozenReference
data:
  sources:
    - {name: hh, path: Anthropic/hh-rlhf, local: "${oc.env:UPO_SHARED}/data/hh", limit: 40}
  validation: 8
  max_length: 200
  overlong: [truncate_prompt_left, truncate_response]
  pairs_per_step: 8
trainer: {max_steps: 3, accelerator: cpu, enable_progress_bar: false}
"""


refused = partial(mistakes.refused, main)


@pytest.fixture
def config(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("UPO_SHARED", str(shared))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_dpo.yaml").write_text(CONFIG)
    return "tiny_dpo.yaml"


def timeless(folder: Path) -> list[dict[str, float]]:
    """Rows of metrics.csv without what depends on the clock."""
    rows = read_metrics(folder / "metrics.csv")
    return [{name: x for name, x in row.items() if not name.startswith("speed/")} for row in rows]


@pytest.mark.turns(2)
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (["--model.betta", "3"], "did you mean `beta`?"),
        (["--model.beta", "-3"], "model.beta"),
        (["--model.beta", "high"], "model.beta"),
        (["--model.beta", "inf"], "model.beta is inf"),
        (["--trainer.gradient_clip_val", ".nan"], "trainer.gradient_clip_val is nan"),
        (["--data.sources", '[{"name": "hh", "options": {"x": [1, .inf]}}]'], "data.sources[0].options.x[1] is inf"),
        (["--model", "DPOO"], "did you mean `DPO`?"),
        (["--data.rewards", '{"easy": {"class_path": "Readabilty"}}'], "did you mean `Readability`?"),
        (["--model.policy.pathh", "x"], "did you mean `path`?"),
        (["--model.policy.path", "${model.nowhere}"], "'model.nowhere' not found"),
        (["--model.reference", "null"], "set `model.reference: FrozenReference`"),
        (["--trainer.max_stepz", "3"], "did you mean `max_steps`?"),
        (["--data.max_lenght=3"], "did you mean `max_length`?"),
        (["--data.max_length", "9999"], "beyond the model's context of 512 tokens"),
        (["--model.policy.path", "no/such/folder"], "no tokenizer at `no/such/folder`"),
        (["--trainer.accumulate_grad_batches", "4"], "data.pairs_per_step"),
        (["--ckpt_path", "last"], "no checkpoint in"),
        (["--ckpt_path", "nowhere.ckpt"], "no such file nowhere.ckpt"),
        (["--after", "[nowhere.yaml]"], "no such file nowhere.yaml"),
        (["--trainer.accelerator", "no_such_chip"], "trainer: "),
        (["--trainer.default_root_dir", "tiny_dpo.yaml"], "tiny_dpo.yaml is a file"),
        (["--model", "UPO", "--model.reward_weights", "{politeness: 1}"], "politeness"),
    ],
)
def test_mistakes_get_a_sentence(override: list[str], expected: str, config: str, capsys) -> None:
    assert expected in refused(capsys, "--config", config, *override)


def test_a_loss_that_is_no_number_ends_the_run(config: str, capsys, tmp_path: Path) -> None:
    """Exit code 1, one sentence, and the last checkpoint in it."""
    rate = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e+38"]
    with pytest.raises(SystemExit) as caught:
        main(["--config", config, *rate, "--checkpoint.every_n_train_steps", "1"])
    text = capsys.readouterr().err.strip()
    assert caught.value.code == 1 and len(text.splitlines()) <= 3
    assert "step 1: " in text and " is nan, and nothing was updated; " in text and "lower the learning rate" in text
    assert "step=1.ckpt; go on from it with --ckpt_path last" in text
    assert not (tmp_path / "runs/tiny_dpo/summary.json").exists()


def test_missing_config(capsys, tmp_path: Path) -> None:
    assert "nope.yaml" in refused(capsys, "--config", str(tmp_path / "nope.yaml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CONFIG.replace("  class_path: DPO", "\tclass_path: DPO"), "x.yaml, line 3 is no valid YAML"),
        ("model: {class_path: DPO\ndata: 1\n", "x.yaml, line 2 is no valid YAML"),
        ("", "x.yaml should hold keys"),
        ("- model\n", "x.yaml should hold keys"),
    ],
)
def test_a_broken_config_is_named_with_its_line(text: str, expected: str, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text)
    assert expected in refused(capsys, "--config", "x.yaml")


def test_source_that_does_not_fit_the_method(config: str, capsys, tmp_path: Path) -> None:
    """Responses that are all undesirable hold no pair."""
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b", "label": false}\n' * 3)
    source = "[{name: trl, path: bad.jsonl}]"
    text = refused(capsys, "--config", config, "--data.sources", source, "--data.validation", "0")
    assert "pair of responses of different preference" in text


def test_a_malformed_line_is_named(config: str, capsys, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", \n')
    text = refused(capsys, "--config", config, "--data.sources", "[{name: trl, path: bad.jsonl}]")
    assert "bad.jsonl:2" in text


def test_a_run_leaves_a_folder(config: str, capsys, tmp_path: Path) -> None:
    main(["--config", config])
    folder = tmp_path / "runs" / "tiny_dpo"
    files = {p.name for p in folder.iterdir()}
    expected = {"config.yaml", "metrics.csv", "data_report.json", "environment.json", "curves.png", "summary.json"}
    assert expected | {"checkpoints"} <= files
    columns = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert columns[0] == "step"
    for name in ("train/loss", "train/rewards/accuracies", "train/logps/chosen", "train/grad_norm", "val/loss"):
        assert name in columns
    summary = json.loads((folder / "summary.json").read_text())
    assert {"val/loss", "val/rewards/accuracies", "val/rewards/margins"} <= set(summary)
    report = json.loads((folder / "data_report.json").read_text())
    kept, dropped = report["hh"]["kept"], report["hh"]["dropped"]
    assert kept["examples"] == 40 == kept["train pairs"] + kept["validation pairs"] + dropped["too long"]

    checkpoint = torch.load(next((folder / "checkpoints").glob("*.ckpt")), weights_only=True)
    assert not [k for k in checkpoint["state_dict"] if "reference" in k]
    assert json.loads(json.dumps(checkpoint["config"])) == checkpoint["config"], "plain types"
    assert checkpoint["config"]["model"]["init_args"]["beta"] == 0.1
    assert checkpoint["PreferenceData"] == {"seed": 0, "rewards": {}}

    # a finished run is not lost by accident, and its config.yaml is the run
    assert "finished run" in refused(capsys, "--config", config)
    first = timeless(folder)
    main(["--config", str(folder / "config.yaml"), "--overwrite", "true"])
    assert timeless(folder) == first


@pytest.mark.slow
def test_ranks_that_lightning_starts_get_the_arguments(config: str, upo_fit, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "upo.fit", "--config", config]
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run([*command, *ranks], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    both = (tmp_path / "runs" / "tiny_dpo" / "metrics.csv").read_text()
    alone = upo_fit("--config", config, "--overwrite", "true")
    assert alone.code == 0, alone.text
    one = (tmp_path / "runs" / "tiny_dpo" / "metrics.csv").read_text()
    steps, others = ([row["train/loss"] for row in csv.DictReader(x.splitlines())] for x in (both, one))
    assert [float(x) for x in steps if x] == pytest.approx([float(x) for x in others if x], rel=1e-5)


def test_unfinished_and_foreign_folders(config: str, capsys, tmp_path: Path) -> None:
    main(["--config", config])
    (tmp_path / "runs" / "tiny_dpo" / "summary.json").unlink()
    assert "--ckpt_path last" in refused(capsys, "--config", config)
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.txt").write_text("...")
    args = ("--config", config, "--overwrite", "--trainer.default_root_dir", str(foreign))
    assert "does not look like a run folder" in refused(capsys, *args)
    assert (foreign / "chapter1.txt").exists()


@pytest.mark.slow
def test_seed_everything_changes_the_order_and_not_the_split(config: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        main(["--config", config, "--seed_everything", str(seed), "--trainer.default_root_dir", f"seed{seed}"])
    reports = [json.loads((tmp_path / f"seed{s}" / "data_report.json").read_text()) for s in (0, 1)]
    assert reports[0] == reports[1]
    rows = [timeless(tmp_path / f"seed{s}")[1] for s in (0, 1)]
    assert rows[0] != rows[1]


@pytest.mark.parametrize("given", ["8", "0.25", "0"])
def test_validation_is_a_number_of_prompts_or_a_share(config: str, given: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--config", config, "--data.validation", given, "--print_config"])
    value = yaml.safe_load(capsys.readouterr().out)["data"]["validation"]
    assert value == yaml.safe_load(given) and type(value) is type(yaml.safe_load(given))


def test_help_holds_our_docstrings(capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--model.help", "UPO"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for words in ("weight of the auxiliary term", "tau is ours", "risk aversion", "the model to train"):
        assert " ".join(words.split()) in " ".join(text.split()), words


STAGES = {
    "first.yaml": """
model:
  class_path: SFT
  init_args:
    policy:
      config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
               num_key_value_heads: 2, max_position_embeddings: 128}
      tokenizer: upo.data.sources.world.tokenizer
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-2}}
data: {sources: [{name: world, options: {n: 64}}], validation: 16, max_length: 96, pairs_per_step: 16}
trainer: {default_root_dir: runs/first, accelerator: cpu, enable_progress_bar: false}
""",
    "second.yaml": """
after: [first.yaml]
model:
  class_path: DPO
  init_args: {policy: {path: runs/first/export}, reference: FrozenReference}
data: {sources: [{name: world, options: {n: 64}}], validation: 16, max_length: 96, pairs_per_step: 16}
trainer: {default_root_dir: runs/second, accelerator: cpu, enable_progress_bar: false}
evaluation:
  prompts: 8
  max_new_tokens: 8
  judge: {class_path: Function, init_args: {path: "upo.data.sources.world:preference"}}
""",
}


def test_a_stage_is_none_of_the_launchers_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their variables it would wait for the other ranks, which wait for it."""
    (config := tmp_path / "first.yaml").write_text(f"trainer: {{default_root_dir: {tmp_path}/run}}")
    seen: dict[str, str] = {}
    monkeypatch.setattr(
        "upo.cli.stages.subprocess.Popen", lambda command, env: seen.update(env) or SimpleNamespace(wait=lambda: 1)
    )
    launched = (
        "SLURM_NTASKS",
        "SLURM_PROCID",
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "TORCHELASTIC_RUN_ID",
    )
    for name in (*launched, "RANKED"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(UserError, match=r"first\.yaml failed"):
        run_earlier_stages([config])
    assert "RANKED" in seen and not seen.keys() & set(launched)


def test_a_stage_goes_beside_the_folder_that_the_command_line_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it has a finished run: then that one is taken, and what names its model stays."""
    monkeypatch.chdir(tmp_path)
    config, later = Path("first.yaml"), Path("elsewhere/second")
    config.write_text("trainer: {default_root_dir: runs/first}")
    model = {"policy": {"path": "runs/first/export"}, "reference": [{"path": "./runs/first/export"}, None], "beta": 0.1}
    moved = follow(copy.deepcopy(model), [config, Path("missing.yaml")], later)
    assert moved["policy"]["path"] == moved["reference"][0]["path"] == "elsewhere/first/export" and moved["beta"] == 0.1
    commands = []
    monkeypatch.setattr(
        "upo.cli.stages.subprocess.Popen",
        lambda command, env: commands.append(command) or SimpleNamespace(wait=lambda: 1),
    )
    for folder in (later, None):
        with pytest.raises(UserError, match=r"first\.yaml failed"):
            run_earlier_stages([config], folder)
    assert commands[0][-2:] == ["--trainer.default_root_dir", "elsewhere/first"]
    assert commands[1][-2:] == ["--config", "first.yaml"]

    for finished, found in (("runs/first", "runs/first"), ("elsewhere/first", "elsewhere/first")):
        Path(finished).mkdir(parents=True)
        Path(finished, "summary.json").write_text("{}")
        assert stage_folder(config, later) == Path(found)
    assert stage_folder(config, None) == stage_folder(config, Path("elsewhere/first")) == Path("runs/first")


def test_other_ranks_end_when_an_earlier_stage_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for rank 0's export, which an earlier launch's failure does not forbid."""
    (config := tmp_path / "first.yaml").write_text(f"trainer: {{default_root_dir: {tmp_path}/runs/first}}")
    monkeypatch.setattr("upo.cli.stages.subprocess.Popen", lambda command, env: SimpleNamespace(wait=lambda: 1))
    monkeypatch.setattr("upo.cli.stages.time.sleep", lambda seconds: pytest.fail("waits"))
    with pytest.raises(UserError, match=r"exit code 1"):
        run_earlier_stages([config])
    monkeypatch.setattr("upo.cli.stages.rank_zero_only.rank", 1)
    with pytest.raises(UserError, match="rank 0 says why"):
        run_earlier_stages([config])
    monkeypatch.setattr("upo.cli.stages.STARTED", time.time() + 60)
    with pytest.raises(pytest.fail.Exception, match="waits"):
        run_earlier_stages([config])


@pytest.mark.turns(3)
def test_stages_chain_and_end_with_an_evaluation(upo_fit, tmp_path: Path) -> None:
    """No shared folder is needed: the synthetic world, a model from scratch, its export, DPO from there."""
    for name, text in STAGES.items():
        (tmp_path / name).write_text(text)
    done = upo_fit("--config", "second.yaml")
    assert done.code == 0, done.text
    assert (tmp_path / "runs/first/summary.json").exists()
    assert (tmp_path / "runs/first/export/model.safetensors").exists()
    summary = json.loads((tmp_path / "runs/second/summary.json").read_text())
    for name in ("val/loss", "policy/kl", "policy/win_rate_vs_reference", "policy/win_rate_vs_reference_low"):
        assert name in summary
    assert "policy/win_rate_vs_chosen_n" in summary and summary["policy/win_rate_vs_chosen_n"] == 8
    first = (tmp_path / "runs/first/metrics.csv").stat().st_mtime_ns
    again = upo_fit("--config", "second.yaml", "--overwrite")
    assert again.code == 0, again.text
    assert (tmp_path / "runs/first/metrics.csv").stat().st_mtime_ns == first, "a finished stage is not trained again"


@pytest.mark.slow
def test_both_stages_lie_where_the_command_line_says(upo_fit, tmp_path: Path) -> None:
    for name, text in STAGES.items():
        (tmp_path / name).write_text(text)
    done = upo_fit("--config", "second.yaml", "--trainer.default_root_dir", "elsewhere/second")
    assert done.code == 0, done.text
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "elsewhere/first/export/model.safetensors").exists()
    saved = yaml.safe_load((tmp_path / "elsewhere/second/config.yaml").read_text())
    assert saved["model"]["init_args"]["policy"]["init_args"]["path"] == "elsewhere/first/export"
