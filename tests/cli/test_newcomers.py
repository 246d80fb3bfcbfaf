"""A newcomer's mistakes with every command: exit code 2, at most three lines, and the cause in them."""

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from mistakes import refused

from upo.cli.main import main as fit

SHAPE = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 96,
}  # fmt: skip
WORLD = "upo.data.sources.world.tokenizer"


FROM = {"folder": "no_tokenizer", "empty": "empty", "file": "notes.md", "adapter": "adapter"}
FROM |= {"checkpoint": "run/checkpoints/last.ckpt"}
"""What newcomers take for a model."""


def config(folder: str, method: str = "DPO", **policy: object) -> dict:
    """A run of two steps."""
    own = {"config": SHAPE, "tokenizer": WORLD} | policy
    arguments: dict = {"policy": own} | ({} if method == "SFT" else {"reference": "FrozenReference"})
    return {
        "model": {"class_path": method, "init_args": arguments},
        "data": {"sources": [{"name": "world", "options": {"n": 24}}], "max_length": 96, "pairs_per_step": 8}
        | {"validation": 8},
        "trainer": {"default_root_dir": folder, "max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False},
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its export, and what lies about in a working directory."""
    folder = tmp_path_factory.mktemp("newcomer")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("own.yaml").write_text(yaml.safe_dump(config("new")))
        Path("no_model.yaml").write_text(yaml.safe_dump({"data": config("x")["data"]}))
        Path("variable.yaml").write_text(yaml.safe_dump(config("new", path="${oc.env:NO_SUCH_VARIABLE}")))
        Path("sft.yaml").write_text(yaml.safe_dump(config("run", "SFT")))
        fit(["sft.yaml"])
        import_module("upo.export").main(["run", "model"])
        Path("empty.jsonl").touch()
        Path("pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
        Path("columns.jsonl").write_text(json.dumps({"a": 1, "b": 2}) + "\n")
        Path("broken.jsonl").write_text('{"prompt": "a", "chosen": \n' * 3)
        Path("notes.md").write_text("# Notes\n\n- [ ] try DPO: *soon*\n")
        Path("empty").mkdir()
        Path("mine").mkdir()
        Path("mine/thesis.tex").write_text("precious")
        Path("no_tokenizer").mkdir()
        for file in Path("model").iterdir():
            if "token" not in file.name and "chat" not in file.name:
                (Path("no_tokenizer") / file.name).write_bytes(file.read_bytes())
        for name, path in FROM.items():
            start = config("new", path=path, config=None, tokenizer=None)
            Path(f"from_{name}.yaml").write_text(yaml.safe_dump(start))
        Path("empty_study.yaml").write_text("folder: study\nruns: []\n")
        Path("lost_base.yaml").write_text("folder: study\nruns: [{name: a, config: nowhere.yaml}]\n")
    return folder


@pytest.fixture(scope="module")
def further(made: Path) -> None:
    """A run with an adapter, its export, and a run of a wider model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        below = {"path": "model", "config": None, "tokenizer": None}
        Path("other.yaml").write_text(yaml.safe_dump(config("other", "SFT", adapter={"r": 2, "alpha": 4}, **below)))
        fit(["other.yaml"])
        import_module("upo.export").main(["other", "adapter"])
        wide = {**SHAPE, "hidden_size": 32}
        Path("wide.yaml").write_text(yaml.safe_dump(config("wide", "SFT", config=wide)))
        fit(["wide.yaml"])


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(made)
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = contents(made)
    yield
    shutil.rmtree("new", ignore_errors=True)
    after = contents(made)
    assert before == {path: text for path, text in after.items() if path in before}, "a mistake costs no file"


def contents(folder: Path) -> dict[Path, bytes]:
    """All files but the locks, which name their last holder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


QUICK = {
    # ---- files that are none -------------------------------------------------------------------------------------
    "fit nope.yaml": "no such file nope.yaml",
    "fit run": "run",
    "fit empty.jsonl": "empty.jsonl should hold keys",
    "fit run/checkpoints/last.ckpt": "last.ckpt is no valid YAML",
    "fit notes.md": "notes.md",
    "fit own.yaml --config nope.yaml": "no such file nope.yaml",
    "check": "give a config first",
    "check nope.yaml": "nope.yaml",
    "check run": "run",
    "check own.yaml --gpu h999": "h999",
    "check own.yaml --devices 0": "--devices 0",
    "check own.yaml --devices many": "many",
    # ---- evaluate ------------------------------------------------------------------------------------------------
    "evaluate": "run",
    "evaluate nowhere": "no such run folder: nowhere",
    "evaluate own.yaml": "own.yaml",
    "evaluate model": "no config.yaml",
    "evaluate empty": "empty",
    "evaluate run --checkpoint first": "first",
    "evaluate run --promts 5": "promts",
    "evaluate run --judge Nobody": "Nobody",
    "evaluate run --prompts -1": "prompts",
    "evaluate run --top_p high": "top_p",
    # ---- compare -------------------------------------------------------------------------------------------------
    "compare": "runs",
    "compare nowhere": "nowhere",
    "compare empty": "empty",
    "compare run": "run",
    "compare pairs.jsonl": "pairs.jsonl",
    "compare run --at_kl -1": "at_kl",
    # ---- generate ------------------------------------------------------------------------------------------------
    "generate --judge Words --out x.jsonl": "model",
    "generate --model nowhere --judge Words --self_prompts 2 --out x.jsonl": "nowhere",
    "generate --model model --judge Nobody --self_prompts 2 --out x.jsonl": "Nobody",
    "generate --model model --judge Words --out x.jsonl": "prompts",
    "generate --model model --judge Words --self_prompts 2 --out pairs.jsonl": "pairs.jsonl",
    "generate --model model --judge Words --self_prompts 2 --out empty": "empty",
    "generate --model model --judge Words --self_prompts 2 --out own.yaml/x.jsonl": "own.yaml",
    "generate --model model --judge Words --prompts.name nothing --out x.jsonl": "nothing",
    # ---- export --------------------------------------------------------------------------------------------------
    "export": "source",
    "export run": "folder",
    "export nowhere out": "nowhere",
    "export model out": "model",
    "export own.yaml out": "own.yaml",
    "export empty out": "empty",
    "export run own.yaml": "own.yaml is a file",
    "export run mine": "not empty",
    "export run own.yaml/out": "own.yaml",
    "export run /proc/none/out": "/proc/none",
    "export run out --merge": "no adapter to --merge",
    "export run out --checkpoint best": "best",
    "export run out --checkpoint newest": "newest",
    # ---- merge ---------------------------------------------------------------------------------------------------
    "merge run": "out",
    "merge run --out out": "two models",
    "merge run nowhere --out out": "nowhere",
    "merge run model --out out --weights 0.5 0.6": "sum to 1",
    "merge run model --out out --weights 1": "--weights",
    "merge run model --out mine": "not empty",
    "merge run model --out own.yaml/x": "own.yaml",
    # ---- ablate, methods, rewards --------------------------------------------------------------------------------
    "ablate": "file",
    "ablate nope.yaml": "nope.yaml",
    "ablate own.yaml": "own.yaml",
    "ablate empty_study.yaml": "runs",
    "ablate lost_base.yaml": "nowhere.yaml",
    "ablate run": "run",
    "ablate lost_base.yaml --jobs 0": "jobs",
    "methods DPOO": "did you mean DPO?",
    "rewards --config nope.yaml": "nope.yaml",
}
"""What is said without parsing a run's YAML."""

SLOW = {
    # ---- the command line of a run -------------------------------------------------------------------------------
    "fit": "model",
    "fit --config": "config",
    "fit no_model.yaml": "model",
    "fit variable.yaml": "NO_SUCH_VARIABLE",
    "fit own.yaml --model.beta 0.1,0.2": "model.beta",
    "fit own.yaml --beta 0.1": "beta",
    "fit own.yaml --learning_rate 1e-5": "model.init_args.optimizer",
    "fit own.yaml --per_device_train_batch_size 4": "data.pairs_per_step",
    "fit own.yaml --model.loss_type ipo": "model.class_path",
    "fit own.yaml --model.policy.model_name_or_path gpt2": "policy.path",
    "fit own.yaml --model.optimizer adamw_torch": "AdamW",
    "fit own.yaml --trainer.maxsteps 5": "did you mean `max_steps`?",
    "fit own.yaml --trainer.devices many": "trainer: `devices`",
    "fit own.yaml --trainer.accelerator gpu": "trainer: ",
    "fit own.yaml --trainer.precision fp17": "precision",
    "fit own.yaml --trainer.strategy dpd": "dpd",
    "fit own.yaml --trainer.logger tensorbord": "tensorbord",
    "fit own.yaml --seed_everything abc": "seed_everything",
    "fit own.yaml --checkpoint.every_n_train_steps -5": "every_n_train_steps",
    "fit own.yaml --evaluation.promts 5": "promts",
    "fit own.yaml --evaluation.judge Nobody": "Nobody",
    "fit own.yaml --model.policy.dtype float17": "dtype",
    "fit own.yaml --model.policy.adapter.r 0": "adapter",
    "fit own.yaml --model UPO": "readability",
    "fit own.yaml --model dpo": "did you mean `DPO`?",
    "fit own.yaml --after [nope.yaml]": "no such file nope.yaml",
    # ---- its folder and checkpoint -------------------------------------------------------------------------------
    "fit own.yaml --trainer.default_root_dir notes.md": "notes.md is a file",
    "fit own.yaml --trainer.default_root_dir notes.md/run": "notes.md",
    "fit own.yaml --trainer.default_root_dir /proc/none/run": "/proc/none",
    "fit sft.yaml": "holds a finished run",
    "fit own.yaml --trainer.default_root_dir mine --overwrite": "does not look like a run folder",
    "fit own.yaml --ckpt_path last": "no checkpoint in",
    "fit own.yaml --ckpt_path empty": "empty",
    "fit own.yaml --ckpt_path own.yaml": "own.yaml",
    "fit own.yaml --ckpt_path model": "model",
    # ---- data ----------------------------------------------------------------------------------------------------
    "fit own.yaml --data.sources pairs.jsonl": "sources",
    "fit own.yaml --data.sources '[{name: jsonl, path: pairs.jsonl}]'": "jsonl",
    "fit own.yaml --data.sources '[{name: trl, path: nowhere.jsonl}]'": "nowhere.jsonl",
    "fit own.yaml --data.sources '[{name: trl, path: empty.jsonl}]'": "empty.jsonl",
    "fit own.yaml --data.sources '[{name: trl, path: empty}]'": "empty",
    "fit own.yaml --data.sources '[{name: trl, path: columns.jsonl}]'": "trl",
    "fit own.yaml --data.sources '[{name: trl, path: broken.jsonl}]'": "broken.jsonl",
    "fit own.yaml --data.sources '[{name: trl, path: model/model.safetensors}]'": "model.safetensors",
    "fit own.yaml --data.validation 1000": "validation",
    "fit own.yaml --data.pairs_per_step 0": "pairs_per_step",
    "fit own.yaml --data.max_length 4": "max_length",
    "fit own.yaml --data.rewards.polite Politeness": "Politeness",
    # ---- models --------------------------------------------------------------------------------------------------
    "fit from_folder.yaml": "no_tokenizer",
    "fit from_empty.yaml": "empty",
    "fit from_file.yaml": "notes.md",
    "fit from_checkpoint.yaml": "last.ckpt",
    "fit from_adapter.yaml": "is an adapter",
    "fit own.yaml --model.policy.config.hidden_size 32 --model.policy.adapter.path adapter": "adapter",
    "fit own.yaml --model.reference.path nowhere": "nowhere",
    # ---- evaluation, comparison ----------------------------------------------------------------------------------
    "evaluate run --against nowhere --prompts 2 --max_new_tokens 8": "nowhere",
    "evaluate run --out own.yaml --prompts 2 --max_new_tokens 8": "own.yaml",
    "evaluate run --out own.yaml/x --prompts 2 --max_new_tokens 8": "own.yaml",
    "evaluate run --checkpoint best": "best",
    "merge run wide --out out": "wide",
    "evaluate run --reference nowhere --prompts 2 --max_new_tokens 8": "nowhere",
    "evaluate run --config other.yaml --prompts 2 --max_new_tokens 8": "other.yaml",
    "evaluate run --objective.polite 1.0 --prompts 2 --max_new_tokens 8": "polite",
}  # fmt: skip
"""What a run says once its YAML has been parsed, and what needs models."""


def command(name: str) -> Callable[..., None]:
    package = Path(import_module("upo").__file__ or "").parent / name
    return import_module(f"upo.{name}.__main__" if package.is_dir() else f"upo.{name}").main


@pytest.mark.parametrize("line", QUICK)
def test_a_mistake_without_a_run(line: str, here: None, capsys: pytest.CaptureFixture) -> None:
    name, *args = shlex.split(line)
    assert QUICK[line] in refused(command(name), capsys, *args)


@pytest.mark.slow
@pytest.mark.parametrize("line", SLOW)
def test_a_mistake_with_a_run(line: str, further: None, here: None, capsys: pytest.CaptureFixture) -> None:
    name, *args = shlex.split(line)
    assert SLOW[line] in refused(command(name), capsys, *args)


def test_there_are_many() -> None:
    assert len(QUICK) + len(SLOW) >= 62
