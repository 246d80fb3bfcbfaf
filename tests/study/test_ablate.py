"""Studies: what a file expands to, what it refuses, and a small one run from end to end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from upo.ablate import main
from upo.errors import UserError
from upo.study.ablation import ablate
from upo.study.plan import expand, load, named, put

pytestmark = pytest.mark.turns(2)

BASE = """
model:
  class_path: DPO
  init_args:
    policy: {path: "${oc.env:UPO_SHARED}/models/stories260k"}
    reference: FrozenReference
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1e-3}}
data:
  sources:
    - {name: hh, path: Anthropic/hh-rlhf, local: "${oc.env:UPO_SHARED}/data/hh", limit: 40}
  validation: 8
  rewards: {words: Words}
  max_length: 200
  overlong: [truncate_prompt_left, truncate_response]
  pairs_per_step: 8
trainer: {max_steps: 2, accelerator: cpu, enable_progress_bar: false}
evaluation: {prompts: 8, max_new_tokens: 6, judge: Sentiment, objective: {words: 0.1}, samples: 0}
"""


@pytest.fixture
def here(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an experiment in a folder of its own."""
    monkeypatch.setenv("UPO_SHARED", str(shared))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "dpo.yaml").write_text(BASE)
    return tmp_path


def study(**content: object) -> Path:
    path = Path("exp/study.yaml")
    path.write_text(yaml.safe_dump({"folder": "runs/s"} | content, sort_keys=False))
    return path


def refusal(**content: object) -> str:
    with pytest.raises(UserError) as error:
        ablate(study(**content))
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# ---- expanding -------------------------------------------------------------------------------------------------------


def test_a_grid_is_a_product_and_each_run_stands_by_itself(here: Path) -> None:
    (here / "exp" / "sft.yaml").write_text(BASE)
    (here / "exp" / "dpo.yaml").write_text(BASE + "after: [sft.yaml]\n")
    grid = {"model.init_args.beta": [0.05, 0.1], "trainer.max_steps": [2, 3]}
    runs = [
        {"name": "a", "config": "dpo.yaml", "grid": grid},
        {"name": "b", "config": "exp/dpo.yaml", "overrides": {"data.pairs_per_step": 4}, "seeds": [7]},
        {"name": "c", "config": "dpo.yaml", "list": [{"model.class_path": "IPO", "model.beta": 1}, {"model.beta": 2}]},
    ]
    file = study(seeds=[0, 1], overrides={"data.pairs_per_step": 2}, runs=runs)
    found = expand(load(file), file).runs
    a = [f"a_beta{b}_max_steps{n}" for b in (0.05, 0.1) for n in (2, 3)]
    assert [r.label for r in found] == [
        *(f"{name}_seed{s}" for name in a for s in (0, 1)),
        "b_seed7", *(f"c_{x}_seed{s}" for x in ("IPO_beta1", "beta2") for s in (0, 1)),
    ]  # fmt: skip
    first, b = found[0], found[8]
    assert yaml.safe_load(first.text()) == first.config
    assert first.config["model"]["init_args"]["beta"] == 0.05
    assert first.config["trainer"]["default_root_dir"] == "runs/s/a_beta0.05_max_steps2_seed0"
    assert first.config["seed_everything"] == 0 and found[1].config["seed_everything"] == 1
    assert first.config["data"]["pairs_per_step"] == 2 and b.config["data"]["pairs_per_step"] == 4
    assert first.config["model"]["init_args"]["policy"]["path"] == "${oc.env:UPO_SHARED}/models/stories260k"
    assert first.config["after"] == ["exp/sft.yaml"]  # found from the working directory, where the run starts


def test_dotted_keys_reach_what_the_command_line_reaches() -> None:
    config = {
        "model": {"class_path": "DPO", "init_args": {"reference": "FrozenReference"}},
        "data": {"sources": [{"limit": 1}]},
    }
    for key, value in {
        "model.beta": 0.2, "model.class_path": "IPO", "model.reference.path": "x", "data.sources.0.limit": 5,
        "evaluation.prompts": 3, "model.init_args.optimizer.class_path": "SGD", "model.optimizer.lr": 1,
    }.items():  # fmt: skip
        put(config, key, value, "here")
    assert config == {
        "model": {
            "class_path": "IPO",
            "init_args": {
                "beta": 0.2,
                "reference": {"class_path": "FrozenReference", "init_args": {"path": "x"}},
                "optimizer": {"class_path": "SGD", "init_args": {"lr": 1}},
            },
        },
        "data": {"sources": [{"limit": 5}]},
        "evaluation": {"prompts": 3},
    }
    for key in ("data.sources.1.limit", "data.sources.first", "evaluation.prompts.x"):
        with pytest.raises(UserError, match=key.replace(".", r"\.")):
            put(config, key, 1, "here")


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [("a.beta", 0.05, "beta0.05"), ("a.lr", "1e-4", "lr1e-4"), ("a.class_path", "x.y.UPO", "UPO"),
     ("on", True, "ontrue"),
     ("w", {"simple": 1.0, "safe": 2}, "wsimple-1.0-safe-2"), ("path", "data/a b", "a-b")],
)  # fmt: skip
def test_changes_name_runs(key: str, value: object, name: str) -> None:
    assert named(key, value) == name


@pytest.mark.slow
def test_wandb_groups_the_study(here: Path) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p"}}
    (here / "exp" / "w.yaml").write_text(BASE.replace("trainer: {", f"trainer: {{logger: {json.dumps(logger)}, "))
    file = study(runs=[{"name": "w", "config": "w.yaml", "grid": {"model.beta": [0.1]}, "seeds": [3]}])
    (ours,) = expand(load(file), file).runs[0].config["trainer"]["logger"]
    assert ours["init_args"] == {"name": "w_beta0.1_seed3", "project": "p"}
    assert ours["dict_kwargs"] == {"group": "s", "tags": ["w", "w_beta0.1", "seed3"]}
    ablate(file, dry_run=True)  # the command line's parser takes it
    assert not (here / "runs").exists()


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_are_found_before_the_first_run(here: Path) -> None:
    run = {"name": "a", "config": "dpo.yaml"}
    assert "no such config nope.yaml" in refusal(runs=[run | {"config": "nope.yaml"}])
    assert "two runs are called a_seed0" in refusal(runs=[run, run])
    assert "a_seed0 and b_seed0 are the same run" in refusal(runs=[run, run | {"name": "b"}])
    assert "did you mean `grid`" in refusal(runs=[run | {"grit": {}}])
    assert "did you mean `seeds`" in refusal(seed=[1], runs=[run])
    assert "did you mean `a`" in refusal(baseline="aa", runs=[run])
    assert "`seeds` is a list" in refusal(seeds=3, runs=[run])
    assert "lists of values" in refusal(runs=[run | {"grid": {"model.beta": 0.1}}])
    assert "`out`" in refusal(generate=[{"model": "x"}], runs=[run])
    good = run | {"name": "good"}
    for key, hint in (("model.betta", "`beta`"), ("modle.beta", "modle"), ("data.max_lenght", "`max_length`")):
        text = refusal(runs=[good, run | {"overrides": {key: 1}}])
        assert text.startswith("run `a` (exp/dpo.yaml): ") and hint in text
    (here / "exp" / "bare.yaml").write_text(BASE.partition("evaluation:")[0])
    assert "no `evaluation:`" in refusal(runs=[{"name": "bare", "config": "bare.yaml"}])
    assert "no such file nope.yaml" in refusal(runs=[run | {"overrides": {"after": ["nope.yaml"]}}])
    assert not (here / "runs").exists()


def test_only_and_the_command_line(here: Path, capsys) -> None:
    file = study(runs=[{"name": "a", "config": "dpo.yaml", "grid": {"model.beta": [0.1, 0.2]}}])
    main([str(file), "--dry_run", "--only", "a_beta0.2"])
    out = capsys.readouterr().out
    assert "a_beta0.2: seeds to train: 0" in out and "a_beta0.1" not in out and "1 of 1 runs" in out
    for args, words in ((["--only", "aa"], "did you mean `a`"), (["--jobs", "0"], "jobs")):
        with pytest.raises(SystemExit) as end:
            main([str(file), *args])
        assert end.value.code == 2 and words in capsys.readouterr().err
    main([str(file), "--sweep", "sweep.yaml"])
    sweep = yaml.safe_load(Path("sweep.yaml").read_text())
    assert sweep["method"] == "grid"
    values = sweep["parameters"]["config"]["values"]
    assert values == [f"runs/s/configs/a_beta{b}_seed0.yaml" for b in (0.1, 0.2)]
    assert all(Path(v).is_file() for v in values)


# ---- running ---------------------------------------------------------------------------------------------------------


def statuses(folder: str = "runs/s") -> dict[str, str]:
    rows = json.loads(Path(folder, "manifest.json").read_text())["runs"]
    return {f"{row['name']}_seed{row['seed']}": row["status"] for row in rows}


@pytest.mark.slow
@pytest.mark.turns(4)
def test_a_study_from_end_to_end(here: Path, capfd) -> None:
    """A stage, a generated set, a run that fails; then a second call, which trains nothing."""
    (here / "exp" / "sft.yaml").write_text(
        BASE.replace("DPO", "SFT").replace("    reference: FrozenReference\n", "") + "after: []\n"
    )
    model = "${oc.env:UPO_SHARED}/models/stories260k"
    made = {"model": model, "self_prompts": 12, "prompt_tokens": 8, "responses": 3, "max_new_tokens": 8,
            "judge": "Words", "out": "runs/s/pairs.jsonl"}  # fmt: skip
    sources = {"data.sources": [{"name": "trl", "path": "runs/s/pairs.jsonl"}], "data.validation": 4}
    runs = [
        {"name": "fails", "config": "dpo.yaml", "overrides": {"data.max_length": 9999}},
        {"name": "staged", "config": "dpo.yaml", "overrides": {"after": ["exp/sft.yaml"]},
         "list": [{"model.policy.path": "runs/sft/export"}]},
        {"name": "own", "config": "dpo.yaml", "overrides": sources | {"model.reference": "StoredReference"}},
    ]  # fmt: skip
    file = study(generate=[made], baseline="own", runs=runs)
    name = "staged_export_seed0"
    with pytest.raises(SystemExit) as end:
        main([str(file), "--jobs", "2"])
    assert end.value.code == 1
    assert statuses() == {"fails_seed0": "failed", name: "finished", "own_seed0": "finished"}
    out = capfd.readouterr().out
    assert "failed: fails_seed0: --data.max_length" in out or "beyond the model's context of 512 tokens" in out
    assert Path("runs/sft/export/model.safetensors").exists()
    assert "own_seed0" in Path("runs/s/own_seed0/config.yaml").read_text()
    content = json.loads(Path("runs/s/comparison.json").read_text())
    assert content["baseline"] == "own" and {row["name"] for row in content["rows"]} == {"reference", "own", name[:-6]}

    before = {p: p.stat().st_mtime_ns for p in Path("runs/s").glob("*_seed0/*") if "fails" not in str(p)}
    runs[0] = {"name": "fails", "config": "dpo.yaml", "overrides": {"data.max_length": 128}}
    assert ablate(study(generate=[made], baseline="own", runs=runs)) == []  # the repaired one alone is trained
    assert set(statuses().values()) == {"finished"}
    assert before == {p: p.stat().st_mtime_ns for p in before}
    everything = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if "_seed" in str(p)}
    Path("runs/s/comparison.json").unlink()
    ablate(study(generate=[made], baseline="own", runs=runs))
    assert everything == {p: p.stat().st_mtime_ns for p in everything}
    assert len(json.loads(Path("runs/s/comparison.json").read_text())["rows"]) == 4

    runs[2] = runs[2] | {"overrides": sources | {"trainer.max_steps": 1}}
    assert "was made with other settings" in refusal(generate=[made], baseline="own", runs=runs)


@pytest.mark.slow
@pytest.mark.turns(4)
def test_a_killed_run_goes_on(here: Path) -> None:
    """The other run of the study is trained all the same; the next call continues from the newest checkpoint."""
    more = {"trainer.max_steps": 12, "trainer.max_epochs": -1, "checkpoint.every_n_train_steps": 2}
    file = study(runs=[{"name": "a", "config": "dpo.yaml", "overrides": more, "seeds": [0, 1]}])
    log, begun = Path("runs/s/a_seed0/log.txt"), Path("runs/s/a_seed0/checkpoints")
    killer = threading.Thread(target=_kill_when, args=(lambda: list(begun.glob("step=*.ckpt")), log), daemon=True)
    killer.start()
    assert ablate(file) == ["a_seed0"]
    assert statuses() == {"a_seed0": "failed", "a_seed1": "finished"}
    rows = json.loads(Path("runs/s/manifest.json").read_text())["runs"]
    assert rows[0]["error"] == "killed by signal 9" and rows[0]["seconds"] > 0
    assert ablate(file) == []
    assert set(statuses().values()) == {"finished"}
    assert log.read_text().count("begun ") == 2
    steps = [row.split(",")[0] for row in Path("runs/s/a_seed0/metrics.csv").read_text().splitlines()[1:]]
    assert len(set(steps)) == len(steps) >= 12


def _kill_when(condition: Callable[[], object], log: Path) -> None:
    while not condition():
        time.sleep(0.005)
    for pid in _writers(log):
        os.kill(pid, signal.SIGKILL)


def _writers(log: Path) -> list[int]:
    """Processes whose output goes to the file."""
    found = []
    for fd in Path("/proc").glob("[0-9]*/fd/1"):
        with contextlib.suppress(OSError):
            if os.readlink(fd) == str(log.resolve()):
                found.append(int(fd.parts[2]))
    return found


@pytest.mark.slow
@pytest.mark.turns(4)
def test_runs_end_with_their_study(here: Path) -> None:
    """A study that is killed leaves no run behind; the same call again continues what was running. W&B offline."""
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p", "save_dir": "."}}
    more = {"trainer.max_steps": 30, "trainer.max_epochs": -1, "checkpoint.every_n_train_steps": 2}
    runs = [{"name": "a", "config": "dpo.yaml", "overrides": more | {"trainer.logger": logger}, "seeds": [0, 1]}]
    file, log = study(runs=runs), Path("runs/s/a_seed0/log.txt")
    command = [sys.executable, "-m", "upo.ablate", str(file), "--jobs", "2"]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"})
    deadline = time.monotonic() + 300
    while not list(log.parent.glob("checkpoints/step=*.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    while _writers(log):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (log.parent / "summary.json").exists()
    assert subprocess.run(command).returncode == 0
    assert set(statuses().values()) == {"finished"}
    steps = [row.split(",")[0] for row in (log.parent / "metrics.csv").read_text().splitlines()[1:]]
    assert len(set(steps)) == len(steps) >= 30
    assert log.read_text().count("begun ") == 2
    (recorded, *_) = sorted(Path("wandb").glob(f"offline-run-*-{(log.parent / 'wandb_id.txt').read_text()}/*.wandb"))
    assert b"a_seed0" in recorded.read_bytes() and b"seed0" in recorded.read_bytes()
