"""What was made before the package's files moved goes on, evaluates, exports and compares as it did.

tests/fixtures/before_the_move is the working directory of a user of the old code, see README.md there. Each test works
in a copy of it, and asks the commands of today for what those of that day gave.

Bit for bit is asked for on a machine like the one that made it (`machine`); elsewhere sums, exponentials and fused
products are rounded otherwise, in the eighth digit, which a few steps of training carry to the sixth or so: there
figures may differ by `RELATIVE`. fixtures/make_before_the_move.py says how to make the folder anew with the old code,
for bits on another machine.
"""

import csv
import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from machine import machine
from safetensors.torch import load_file

from upo.ablate import main as ablate
from upo.compare import main as compare
from upo.evaluate import main as evaluate
from upo.export import export
from upo.fit import main as fit
from upo.merge import main as merge

pytestmark = pytest.mark.turns(3)

BEFORE = Path(__file__).parent / "fixtures" / "before_the_move"
MADE_ON = json.loads((BEFORE / "machine.json").read_text())
SAME = machine() == MADE_ON
NAMES = json.loads((BEFORE / "names.json").read_text())
RELATIVE, NATS = 1e-4, 1e-5
"""Tolerance on other machines: relative, and absolute for what is near 0."""

STEPS = {"stored": 4, "upo": 4, "tr_dpo": 4, "lora": 4, "world": 2}
"""Runs that were killed, and the step of the checkpoint that they left."""
SLOW = pytest.mark.slow


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's working directory."""
    shutil.copytree(BEFORE, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: Path(file).touch())  # half the time
    return tmp_path


NEW = {"remarks", "harness", "seen/pairs", "seen/tokens", "Seen", "reference_start"}
"""Keys that there were none of."""


def agrees(found: Any, recorded: Any, where: str = "") -> None:
    """All keys that were there, texts and places, and the same numbers as far as this machine can give them."""
    if isinstance(recorded, dict):
        assert found.keys() - NEW == recorded.keys(), where
        for key, value in recorded.items():
            agrees(found[key], value, f"{where}/{key}")
    elif isinstance(recorded, list | tuple):
        assert len(found) == len(recorded), where
        for i, value in enumerate(recorded):
            agrees(found[i], value, f"{where}/{i}")
    elif isinstance(recorded, torch.Tensor):
        torch.testing.assert_close(found, recorded, **({"rtol": 0, "atol": 0} if SAME else {}), msg=where)
    elif isinstance(recorded, float) and not SAME:
        assert found == pytest.approx(recorded, rel=RELATIVE, abs=NATS), where
    else:
        assert found == recorded, where


def rows(file: str | Path) -> list[dict[str, float]]:
    """metrics.csv without what depends on the clock."""
    with Path(file).open(newline="") as lines:
        found = [{name: float(x) for name, x in row.items() if x} for row in csv.DictReader(lines)]
    return [{name: x for name, x in row.items() if not name.startswith("speed/")} for row in found]


def content(file: str | Path) -> Any:
    return json.loads(Path(file).read_text())


def times(folder: str) -> dict[Path, int]:
    """When each file of a folder was written."""
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


# ---- runs that were killed -----------------------------------------------------------------------------------------


def resumed(name: str) -> None:
    """Asserts that a run's folder is now what the uninterrupted run left."""
    found, recorded = rows(f"made/{name}/metrics.csv"), rows(f"whole/{name}.csv")
    kept = STEPS.get(name, 4)
    assert found[:kept] == recorded[:kept], "rows before the checkpoint are kept, not computed"
    agrees(found, recorded)
    agrees(content(f"made/{name}/summary.json"), content(f"whole/{name}.json"))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("upo", "upo.yaml"),
        pytest.param("stored", "made/stored/config.yaml", marks=SLOW),
        pytest.param("tr_dpo", "made/tr_dpo/config.yaml", marks=SLOW),
        pytest.param("lora", "made/lora/config.yaml", marks=SLOW),
        pytest.param("world", "made/world/config.yaml", marks=SLOW),
        *(pytest.param(name, f"{name}.yaml", marks=SLOW) for name in STEPS if name != "upo"),
        pytest.param("upo", "made/upo/config.yaml", marks=SLOW),
    ],
)
def test_a_killed_run_goes_on(name: str, config: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    """By the user's YAML, or by the run's own, in which all classes have their old full names."""
    before = times("made/sft"), times("store"), times("cache")
    fit(["--config", config, "--ckpt_path", "last"])
    resumed(name)
    assert before == (times("made/sft"), times("store"), times("cache")), "what is there is not made again"
    if name == "stored" and version("transformers") == MADE_ON["transformers"]:  # it has a say in a model's hash
        assert "reference log-probs: 29 read, 0 computed" in capsys.readouterr().out


@pytest.mark.parametrize("name", [pytest.param(x, marks=[] if x == "upo" else SLOW) for x in STEPS])
def test_the_same_command_makes_the_same_checkpoint(name: str, here: Path) -> None:
    """From scratch, up to the step of the checkpoint that there is."""
    steps = STEPS[name]
    fit(["--config", f"{name}.yaml", "--trainer.default_root_dir", "again", "--trainer.max_steps", str(steps)])
    found, recorded = rows("again/metrics.csv")[:steps], rows(f"whole/{name}.csv")[:steps]
    if not SAME:  # policy and reference begin as equals: rounding decides which of two rewards of 0 is larger
        for row in (found[0], recorded[0]):
            for key in ("train/rewards/accuracies", "train/rewards/ties"):
                row.pop(key, None)
    agrees(found, recorded)
    file = f"checkpoints/step={steps}.ckpt"
    found, recorded = (torch.load(f"{run}/{file}", weights_only=True) for run in ("again", f"made/{name}"))
    assert found.keys() - NEW == recorded.keys()
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "PreferenceData", "global_step", "epoch"):
        agrees(found[part], recorded[part], part)
    assert found["callbacks"].keys() - NEW == recorded["callbacks"].keys()
    for key, state in recorded["callbacks"].items():
        if not key.startswith("Checkpoints"):  # where its files are
            mine, theirs = ({k: v for k, v in x.items() if k != "python"} for x in (found["callbacks"][key], state))
            agrees(mine, theirs, key)  # without a generator that the tests' type checks draw from


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_sharded_run_goes_on(ranks: int, here: Path, upo_fit) -> None:
    """In shards as before, or as a whole."""
    args = ["--config", "made/sharded/config.yaml", "--ckpt_path", "last"]
    if ranks == 2:
        done = upo_fit(*args, ranks=2)
        assert done.code == 0, done.text
        resumed("sharded")
        return
    fit([*args, "--trainer.strategy", "auto", "--trainer.devices", "1"])
    found, recorded = (rows(file) for file in ("made/sharded/metrics.csv", "whole/sharded.csv"))
    assert [r["train/loss"] for r in found] == pytest.approx([r["train/loss"] for r in recorded], abs=1e-5)


# ---- runs that are finished ----------------------------------------------------------------------------------------


def test_an_evaluation_gives_the_same_figures(here: Path) -> None:
    evaluate(["made/dpo"])
    for file in ("evaluation.json", "summary.json", "alpaca_eval.json"):
        agrees(content(Path("made/dpo", file)), content(BEFORE / "made" / "dpo" / file))
    before = BEFORE / "made" / "dpo"
    now, then = ((x / "samples.jsonl").read_text().splitlines() for x in (Path("made/dpo"), before))
    for row, old in zip(now, then, strict=True):  # lines of today also hold the prompt as words, and scores
        assert json.loads(row) | json.loads(old) == json.loads(row)
    rows = Path("made/dpo/report.md").read_text().replace("\\[", "[").replace("\\]", "]").splitlines()  # escaped now
    tables, _, samples = (before / "report.md").read_text().partition("## Samples\n")
    for row in (tables + samples[samples.index("## Settings") :]).splitlines():  # samples have scores beside them now
        assert any(x.startswith(row.removesuffix("|")) for x in rows), "columns may have come behind the old ones"


def test_an_interrupted_evaluation_goes_on(here: Path) -> None:
    """What was sampled is not sampled again: a text that no model wrote comes out as it was kept."""
    if version("transformers") != MADE_ON["transformers"]:
        pytest.skip("kept texts are known by a model's configuration as another version of transformers writes it")
    file = Path("evaluated/.evaluation.partial.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines() if line]
    assert len(lines) == 8, "four prompts, policy and reference"
    lines[0][2]["text"] = "Nobody wrote this."
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate(["made/kto", "--out", "evaluated"])
    assert "Nobody wrote this." in Path("evaluated/samples.jsonl").read_text()
    assert not file.exists()


@pytest.mark.slow
def test_runs_and_models_compare_with_others(here: Path) -> None:
    """A finished run as the rival, a model folder as the reference."""
    evaluate(["made/kto", "--out", "again", "--against", "made/dpo", "--reference", "made/sft/export"])
    rival = {row["prompt"]: row["policy"] for row in content("made/dpo/evaluation.json")["prompts"]}
    for row in content("again/evaluation.json")["prompts"]:
        assert row["rival"]["rewards/judge"] == rival[row["prompt"]]["rewards/judge"]
        assert row["rival"]["tokens"] == rival[row["prompt"]]["tokens"]


def test_a_comparison_says_the_same(here: Path) -> None:
    compare(["made/dpo", "made/kto", "--out", "again"])
    found, recorded = content("again/comparison.json"), content("compared/comparison.json")
    assert json.dumps(found).replace("again/", "") == json.dumps(recorded).replace("compared/", "")
    assert Path("again/comparison.md").read_text() == Path("compared/comparison.md").read_text()


def one_row() -> None:
    """Asserts that a run of seed 0 and one of seed 1 are two of the same experiment."""
    compare(["made/dpo", "made/dpo_seed1", "--out", "again"])
    found = content("again/comparison.json")
    assert [row["seeds"] for row in found["rows"]] == [[], [0, 1]], "the reference, and DPO"
    assert found["notes"] == [], "nothing differs in how they were evaluated"


def test_old_and_new_names_are_one_setting(here: Path, capsys: pytest.CaptureFixture) -> None:
    """A class that is now called otherwise makes no other row of a comparison."""
    shutil.copytree("made/dpo", "made/dpo_seed1", symlinks=True)
    config = understood(yaml.safe_load(Path("dpo.yaml").read_text()) | {"seed_everything": 1}, capsys)
    Path("made/dpo_seed1/config.yaml").write_text(yaml.safe_dump(config))
    one_row()


@pytest.mark.slow
def test_old_and_new_seeds_are_one_row(here: Path) -> None:
    """The new one is trained from the stage that is there."""
    stage = times("made/sft")
    fit(["--config", "dpo.yaml", "--seed_everything", "1", "--trainer.default_root_dir", "made/dpo_seed1"])
    assert times("made/sft") == stage
    one_row()


@pytest.mark.parametrize(("run", "folder"), [("sft", "made/sft/export"), ("lora", "exported_adapter"),
                                             ("sharded", "exported_sharded")])  # fmt: skip
def test_an_export_gives_the_same_files(run: str, folder: str, here: Path) -> None:
    """Also of runs that are not finished; nothing is computed, so bit for bit on all machines."""
    export(Path("made", run), Path("again"))
    recorded = {path.name: path for path in Path(folder).iterdir()}
    assert {path.name for path in Path("again").iterdir()} == set(recorded)
    for name, path in recorded.items():
        mine = Path("again", name)
        if name.endswith(".safetensors"):
            theirs, ours = load_file(path), load_file(mine)
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], x) for key, x in theirs.items())
        elif name.endswith(".json"):
            theirs, ours = ({k: v for k, v in content(x).items() if "version" not in k} for x in (path, mine))
            assert ours == theirs, name
        elif name == "README.md":  # its figures are chosen now, and said to be better high or low
            theirs, ours = (re.sub(r"## (Metrics|Figures).*?(?=## Configuration)", "", x.read_text(), flags=re.S)
                            for x in (path, mine))  # fmt: skip
            assert ours == theirs
        else:
            assert mine.read_text() == path.read_text(), name


def weights(run: str) -> dict[str, torch.Tensor]:
    """The policy's tensors in a run's checkpoint, by the model's names."""
    (file,) = (p for p in Path("made", run, "checkpoints").glob("*.ckpt") if not p.is_symlink())
    state = torch.load(file, weights_only=True)["state_dict"]
    return {k.removeprefix("policy.model."): x.double() for k, x in state.items() if k.startswith("policy.model.")}


def test_models_merge(here: Path) -> None:
    """A run, another one, and an export; the sum is that of the tensors as they lie in the files."""
    merge(["made/dpo", "made/kto", "made/sft/export", "--weights", "0.5", "0.3", "0.2", "--out", "again"])
    dpo, kto, sft = weights("dpo"), weights("kto"), weights("sft")
    for name, x in load_file("again/model.safetensors").items():
        assert torch.equal(x, (0.5 * dpo[name] + 0.3 * kto[name] + 0.2 * sft[name]).float()), name


def test_an_adapter_merges(here: Path) -> None:
    """Into the model below it: W + (alpha / r) B A."""
    export(Path("made/lora"), Path("again"), merge=True)
    below, whole, name = load_file("model/model.safetensors"), load_file("again/model.safetensors"), "up_proj"
    part = {k.partition(".lora_")[2][0]: x for k, x in weights("lora").items() if f"layers.1.mlp.{name}.lora_" in k}
    key = f"model.layers.1.mlp.{name}.weight"
    torch.testing.assert_close(whole[key], below[key] + 2 * (part["B"] @ part["A"]).float())
    assert not torch.equal(whole[key], below[key]) and torch.equal(
        whole["model.norm.weight"], below["model.norm.weight"]
    )


@pytest.mark.slow
def test_an_adapter_trains_on(here: Path, capsys: pytest.CaptureFixture) -> None:
    """As what another run starts from, by the run that made it and by peft's folder."""
    short = ["--trainer.max_steps", "1", "--evaluation", "null"]
    for start in ("made/lora", "exported_adapter"):
        more = ["--model.policy.adapter.path", start, "--trainer.default_root_dir", f"more/{Path(start).name}"]
        fit(["--config", "lora.yaml", *short, *more])
        assert f"with the adapter {start}" in capsys.readouterr().out
    first, second = (rows(f"more/{name}/metrics.csv") for name in ("lora", "exported_adapter"))
    assert first == second and first[0]["train/loss"] == pytest.approx(0.693147, abs=1e-5)


# ---- studies -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_goes_on(here: Path, capfd: pytest.CaptureFixture) -> None:
    """The finished run is kept, the killed one continued, both are compared; then nothing is left to do."""
    kept = times("made/study/weak_seed0")
    ablate(["study.yaml"])
    assert {row["status"] for row in content("made/study/manifest.json")["runs"]} == {"finished"}
    assert times("made/study/weak_seed0") == kept
    agrees(rows("made/study/strong_beta0.5_seed0/metrics.csv"), rows("whole/strong.csv"))
    found = content("made/study/comparison.json")
    assert [row["name"] for row in found["rows"]] == ["reference", "weak", "strong_beta0.5"]
    assert found["baseline"] == "weak" and found["notes"] == []


# ---- names ---------------------------------------------------------------------------------------------------------


def understood(config: dict[str, Any], capsys: pytest.CaptureFixture) -> dict[str, Any]:
    """What the command line takes a YAML for; nothing is built."""
    Path("names.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as end:
        fit(["--config", "names.yaml", "--print_config"])
    out = capsys.readouterr()
    assert end.value.code == 0, out.err
    return yaml.safe_load(out.out)


def classes(config: Any) -> set[str]:
    """Classes that a config names, without their modules."""
    if isinstance(config, dict):
        own = {str(config["class_path"]).rpartition(".")[2]} if "class_path" in config else set()
        return own.union(*map(classes, config.values()))
    return set().union(*map(classes, config)) if isinstance(config, list) else set()


ARGUMENTS = {
    "Function": {"path": "upo.data.sources.world:preference"},
    "HuggingFaceReward": {"model": "m"},
    "SafetyClassifier": {"model": "m"},
    "Mixture": {"rewards": {"words": "Words"}, "weights": {"words": 1.0}},
    "Pattern": {"pattern": "x"},
    "MetricsCSV": {"folder": "f"},
    "ChatJudge": {"model": "m"},
}
"""What classes cannot be named without."""


def called(path: str) -> dict[str, Any]:
    return {"class_path": path, "init_args": ARGUMENTS.get(path.rpartition(".")[2], {})}


def config(method: str, **options: Any) -> dict[str, Any]:
    """A YAML in full names."""
    policy = {"class_path": NAMES["policy"][0], "init_args": {"path": "model", "adapter": called(NAMES["adapter"][0])}}
    data = {"sources": [{"name": "upo.data.sources.world.world"}], "sampler": NAMES["sampler"][0]}
    init = {"policy": policy, "reference": NAMES["reference"][0]} | options
    return {"model": {"class_path": method, "init_args": init}, "data": data}


def test_old_names_are_understood(here: Path, capsys: pytest.CaptureFixture) -> None:
    """Each class that a YAML may call by its full name, but for methods, in a place where it belongs."""
    everything = config("upo.methods.UPO", value_loss=NAMES["value_loss"][0])
    everything["data"]["rewards"] = {str(i): called(path) for i, path in enumerate(NAMES["reward"])}
    everything["evaluation"] = {"judge": called(NAMES["judge"][0])}
    everything["trainer"] = {
        "strategy": called(NAMES["strategy"][0]),
        "logger": [called(path) for path in NAMES["logger"]],
        "callbacks": [called(path) for path in NAMES["callback"]],
        "plugins": [called(path) for path in NAMES["plugin"]],
    }
    wanted = {path.rpartition(".")[2] for kind in ("policy", "adapter", "reward", "strategy", "logger", "callback",
                                                   "plugin") for path in NAMES[kind]}  # fmt: skip
    found = understood(everything, capsys)
    assert wanted <= classes(found) and found["data"]["sampler"].endswith(".CurriculumSampler")
    for i in range(4):
        more = config("upo.methods.f_dpo.FDPO", divergence=NAMES["divergence"][i], reference=NAMES["reference"][i])
        more["data"]["sampler"] = NAMES["sampler"][i % 3]
        found = understood(more, capsys)
        for kind in ("divergence", "reference"):
            assert NAMES[kind][i].rpartition(".")[2] in classes(found)
        assert found["data"]["sampler"].rpartition(".")[2] == NAMES["sampler"][i % 3].rpartition(".")[2]
    last = config("upo.methods.UPO", value_loss=NAMES["value_loss"][1])
    wrapped = {"auto_wrap_policy": [NAMES["policy"][0]]}
    last["trainer"] = {"strategy": {"class_path": "lightning.pytorch.strategies.FSDPStrategy", "init_args": wrapped}}
    last["evaluation"] = {"judge": called(NAMES["judge"][1])}
    assert {"Linex", "ChatJudge", "FSDPStrategy"} <= classes(understood(last, capsys))


@pytest.mark.slow
@pytest.mark.parametrize("method", NAMES["method"])
def test_old_names_of_methods_are_understood(method: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    """By the package, as a saved config names them, and by the file that defines them."""
    fit_help = ["--model.help", method]
    with pytest.raises(SystemExit) as end:
        fit(fit_help)
    out = capsys.readouterr()
    assert end.value.code == 0, out.err
    assert "--model.policy" in out.out
