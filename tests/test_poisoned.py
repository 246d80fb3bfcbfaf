"""Files that somebody else has made: checkpoints, run folders and models that would write or run something."""

import ast
import io
import json
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import mistakes
import pytest
import tiny
import torch
import yaml

from upo.check.__main__ import main as check
from upo.cli.main import main as fit
from upo.compare import main as compare
from upo.errors import UserError
from upo.evaluate import main as evaluate
from upo.evaluation.runs import load_run
from upo.export import main as export
from upo.generate import main as generate
from upo.merge import main as merge
from upo.models.adapter_files import write_adapter
from upo.models.adapters import owner
from upo.models.checkpoint import load_model
from upo.models.checkpoint_files import check_resumable, is_plain, read_checkpoint
from upo.models.lora import LoRA
from upo.rewards.__main__ import main as rewards

pytestmark = pytest.mark.turns(3)

ROOT = Path(__file__).parent.parent
SHAPE = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 96,
}  # fmt: skip
POLICY = {"config": SHAPE, "tokenizer": "upo.data.sources.world.tokenizer"}
EVALUATION = {"prompts": 2, "max_new_tokens": 2}
CONFIG = {
    "model": {"class_path": "SFT", "init_args": {"policy": POLICY}},
    "data": {
        "sources": [{"name": "world", "options": {"n": 16}}],
        "validation": 4,
        "max_length": 96,
        "pairs_per_step": 4,
    },
    "trainer": {"default_root_dir": "run", "max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False},
    "evaluation": EVALUATION,
}


def put(config: dict, place: str, value: object) -> None:
    """Sets `a.b.c`."""
    *path, last = place.split(".")
    for name in path:
        config = config.setdefault(name, {})
    config[last] = value


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A checkpoint of the run in CONFIG."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    try:
        os.chdir(folder)
        Path("run.yaml").write_text(yaml.safe_dump(CONFIG | {"evaluation": None}))
        fit(["--config", "run.yaml"])
        return torch.load("run/checkpoints/step=2.ckpt", weights_only=True)
    finally:
        os.chdir(before)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict) -> Path:
    """A folder two levels down, with a run folder of somebody else in it; `harm` above must not come to be."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    Path("run/checkpoints").mkdir(parents=True)
    Path("run.yaml").write_text(yaml.safe_dump(CONFIG))
    Path("run/config.yaml").write_text(yaml.safe_dump(CONFIG))
    save(content)
    return tmp_path


def save(content: object, file: str = "run/checkpoints/step=2.ckpt") -> None:
    torch.save(content, file)


def unharmed(folder: Path) -> None:
    assert not list(folder.rglob("harm*"))


# ---- names of files ------------------------------------------------------------------------------------------------

ENTRIES: dict[str, tuple[Callable[..., None], list[str]]] = {
    "export": (export, ["run", "out"]),
    "export of a file": (export, ["run/checkpoints/step=2.ckpt", "out"]),
    "export with --merge": (export, ["run", "out", "--merge"]),
    "evaluate": (evaluate, ["run"]),
    "evaluate another reference": (evaluate, ["good", "--reference", "run"]),
    "merge": (merge, ["run", "run", "--out", "out"]),
    "merge with a good one": (merge, ["good", "run", "--out", "out"]),
    "generate": (generate, ["--model", "run", "--self_prompts", "2", "--judge", "Words", "--out", "o.jsonl"]),
    "resume": (fit, ["--config", "run.yaml", "--ckpt_path", "last"]),
    "start from an adapter": (
        fit,
        ["--config", "run.yaml", "--trainer.default_root_dir", "other", "--model.policy",
         "{path: base, config: null, tokenizer: null, adapter: {path: run}}"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_checkpoint_writes_no_file_elsewhere(entry: str, content: dict, here: Path, capsys) -> None:
    (main, args), name = ENTRIES[entry], str(here / "harm.txt") if entry == "export" else "../harm.txt"
    Path("good/checkpoints").mkdir(parents=True)
    Path("good/config.yaml").write_text(yaml.safe_dump(CONFIG))
    save(content, "good/checkpoints/step=2.ckpt")
    if "adapter" in entry:
        load_model("good")[0].save_pretrained("base")
        load_model("good")[1].save_pretrained("base")
    save(content | {"policy_files": content["policy_files"] | {name: b"harm"}})
    assert "would write a file outside of its folder" in mistakes.refused(main, capsys, *args)
    unharmed(here)


def test_compare_reads_no_checkpoint(content: dict, here: Path, capsys) -> None:
    save(content | {"policy_files": {"../../harm": b""}})
    Path("run/summary.json").write_text("{}")
    row = {"prompt": "p", "policy": {"words": 1.0}}
    found = {"settings": {}, "metrics": {}, "prompts": [row], "pairs": []}
    Path("run/evaluation.json").write_text(json.dumps(found))
    compare(["run", "--out", "out"])
    unharmed(here)


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "a/b", "a\\b", "..\\x", "/x", "C:x", "C:\\x", "x\0", "x\n", "\ud800", "x" * 300, 7, b"x", ("x",)],
)  # fmt: skip
def test_only_plain_names(name: object) -> None:
    assert not is_plain(name)


def test_all_that_transformers_writes_is_plain(content: dict) -> None:
    assert all(map(is_plain, content["policy_files"])) and "config.json" in content["policy_files"]


# ---- broken and strange content ------------------------------------------------------------------------------------


class Code:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("harm",))


def strange(content: dict) -> dict[str, object]:
    """What is no checkpoint, by what is wrong with it."""
    files = content["policy_files"]
    return {
        "text": "hi",
        "a list": [1],
        "code": content | {"callbacks": Code()},
        "no files": {k: v for k, v in content.items() if k != "policy_files"},
        "files that are none": content | {"policy_files": {"config.json": 3}},
        "files in a list": content | {"policy_files": [b"x"]},
        "weights that are none": content | {"state_dict": {"policy.model.x": 3}},
        "a broken config": content | {"policy_files": files | {"config.json": b"{"}},
        "a strange config": content | {"policy_files": files | {"config.json": b"[]"}},
        "another architecture": content | {"policy_files": files | {"config.json": b'{"model_type": "gpt2"}'}},
        "a broken tokenizer": content | {"policy_files": files | {"tokenizer.json": b"{}"}},
        "a tensor too few": content | {"state_dict": dict(list(content["state_dict"].items())[1:])},
        "own code": content | {"policy_files": files | own_code(files)},
    }


def own_code(files: dict[str, bytes]) -> dict[str, bytes]:
    """A configuration that asks for code beside it, and the code."""
    config = json.loads(files["config.json"]) | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    return {"config.json": json.dumps(config).encode(), "evil.py": b"import os\nos.mkdir('harm')\n"}


STRANGE = list(strange({"policy_files": {"config.json": b"{}"}, "state_dict": {}}))


@pytest.mark.parametrize("what", STRANGE)
def test_strange_content_gives_one_sentence_on_export(what: str, content: dict, here: Path, capsys) -> None:
    save(strange(content)[what])
    mistakes.refused(export, capsys, "run", "out")
    assert not Path("out").exists()
    unharmed(here)


BAD_STATE = {
    "no loops": {"loops": None},
    "no optimizer": {"optimizer_states": []},
    "a strange optimizer": {"optimizer_states": [{"state": {}, "param_groups": [{}]}]},
    "strange loops": {"loops": {"fit_loop": {}}},
    "strange callbacks": {"callbacks": {"Throughput": [], "RandomState": 3}},
    "strange data": {"PreferenceData": {"seed": {}}},
    "no step": {"global_step": "x"},
    "weights of another model": {"state_dict": {"policy.model.x": torch.zeros(2)}},
}


@pytest.mark.turns(3)
@pytest.mark.parametrize("what", ["text", "code", "no files", *BAD_STATE])
def test_strange_content_gives_one_sentence_on_resume(what: str, content: dict, here: Path, capsys) -> None:
    save(content | BAD_STATE[what] if what in BAD_STATE else strange(content)[what])
    mistakes.refused(fit, capsys, "--config", "run.yaml", "--ckpt_path", "last", "--trainer.max_steps", "3")
    unharmed(here)


def test_what_is_cut_off_or_changed_gives_one_sentence(content: dict, here: Path, capsys) -> None:
    """Wherever a file without a sum ends."""
    file = Path("run/checkpoints/step=2.ckpt")
    whole = file.read_bytes()
    for part in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:part])
        assert "is broken or no checkpoint" in mistakes.refused(export, capsys, "run", "out")
        with pytest.raises(UserError, match="is broken or no checkpoint"):
            check_resumable(file)


def test_a_folder_that_would_run_code_is_refused_before_pytorch_reads_it(here: Path, capsys) -> None:
    """Its table of contents, and what it holds besides tensors."""
    folder = Path("run/checkpoints/step=3.ckpt")
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Code()))
    for main, args in ((fit, ("--config", "run.yaml", "--ckpt_path", "last")), (export, ("run", "out"))):
        assert "is broken or no checkpoint" in mistakes.refused(main, capsys, *args)
    unharmed(here)
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

    data = io.BytesIO()
    torch.save(Code(), data)
    (folder / "__0_0.distcp").write_bytes(data.getvalue())
    name, place = "optimizer_0.x", _StorageInfo("__0_0.distcp", 0, len(data.getvalue()))
    table = Metadata({name: BytesStorageMetadata()}, {name: ("optimizer_0", "x")}, {MetadataIndex(name): place})
    (folder / ".metadata").write_bytes(pickle.dumps(table))
    torch.save({}, folder / "meta.pt")
    with pytest.raises(UserError, match="is broken or no checkpoint"):
        check_resumable(folder)
    unharmed(here)


@pytest.mark.parametrize(
    ("file", "text", "main", "args"),
    [
        ("config.yaml", "model: [", evaluate, ["run"]),
        ("config.yaml", "- 1\n", evaluate, ["run"]),
        ("config.yaml", "model: 3\ndata: {}\n", evaluate, ["run"]),
        ("config.yaml", "!!python/object/apply:os.mkdir [harm]", evaluate, ["run"]),
        ("config.yaml", "!!python/object/apply:os.mkdir [harm]", export, ["run", "out"]),
        ("config.yaml", "model: [", export, ["run", "out"]),
        ("config.yaml", "- 1\n", export, ["run", "out"]),
        ("config.yaml", "!!python/object/apply:os.mkdir [harm]", compare, ["run"]),
        ("config.yaml", "model: 3\n", compare, ["run"]),
        ("summary.json", "{", export, ["run", "out"]),
        ("summary.json", '{"policy/objective": "y"}', export, ["run", "out"]),
        ("evaluation.json", "{", compare, ["run"]),
        ("evaluation.json", "[]", compare, ["run"]),
        ("evaluation.json", '{"settings": {}, "metrics": {}, "pairs": [], "prompts": [3]}', compare, ["run"]),
    ],
)  # fmt: skip
def test_strange_files_of_a_run_give_one_sentence(
    file: str, text: str, main: Callable[..., None], args: Sequence[str], here: Path, capsys
) -> None:
    Path("run/summary.json").write_text("{}")
    Path("run/evaluation.json").write_text('{"settings": {}, "metrics": {}, "pairs": [], "prompts": []}')
    Path("run", file).write_text(text)
    mistakes.refused(main, capsys, *args)
    unharmed(here)


# ---- class paths ---------------------------------------------------------------------------------------------------

EVIL = """
import os
os.mkdir("imported")
import torch
from upo.methods import SFT
from upo.rewards import Words

def run(path: str) -> int:
    os.mkdir(path)
    return 0

def optimizer(path: str) -> torch.optim.Optimizer:
    os.mkdir(path)

def function(prompts, responses):
    os.mkdir("harm")
    return [0.0] * len(responses)

def source(rows, report):
    os.mkdir("harm")
    return []

def tokenizer():
    os.mkdir("harm")

class Mine(SFT):
    pass

class MyWords(Words):
    pass
"""


@pytest.fixture
def evil(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module beside the run folder, importable as `python -m` makes it."""
    Path("evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    yield here
    sys.modules.pop("evil", None)


NO_OPTIMIZERS = [
    {"class_path": "os.system", "init_args": {"command": "mkdir harm"}},
    {"class_path": "os.mkdir", "init_args": {"path": "harm"}},
    {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "harm"]}},
    {"class_path": "subprocess.run"},
    {"class_path": "evil.run", "init_args": {"path": "harm"}},
    {"class_path": "evil.optimizer", "init_args": {"path": "harm"}},
    {"class_path": "evil.Mine"},
    {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 2}},
    "evil.run",
    "os.system",
]


@pytest.mark.turns(3)
@pytest.mark.parametrize("place", ["model.init_args.optimizer", "model.init_args.scheduler"])
@pytest.mark.parametrize("value", NO_OPTIMIZERS, ids=str)
def test_a_class_path_is_a_class_of_what_its_place_wants(place: str, value: object, evil: Path, capsys) -> None:
    """In the user's own YAML too, by all that make something of it; nothing is called."""
    put(config := yaml.safe_load(Path("run.yaml").read_text()), place, value)
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    mistakes.refused(check, capsys, "mine.yaml")
    unharmed(evil)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("trainer.callbacks", [{"class_path": "os.system", "init_args": {"command": "mkdir harm"}}]),
        ("trainer.callbacks", [{"class_path": "evil.run", "init_args": {"path": "harm"}}]),
        (
            "trainer.callbacks",
            [{"class_path": "lightning.pytorch.callbacks.LambdaCallback",
              "init_args": {"on_fit_start": {"class_path": "evil.run", "init_args": {"path": "harm"}}}}],
        ),
        ("trainer.logger", {"class_path": "evil.run", "init_args": {"path": "harm"}}),
        ("trainer.strategy", {"class_path": "evil.run", "init_args": {"path": "harm"}}),
        ("data.rewards", {"x": {"class_path": "evil.run", "init_args": {"path": "harm"}}}),
        ("data.rewards", {"x": {"class_path": "evil.Mine"}}),
        ("data.sampler", "evil.run"),
        ("data.feed", {"class_path": "evil.run", "init_args": {"path": "harm"}}),
        ("model.init_args.policy", {"class_path": "evil.run", "init_args": {"path": "harm"}}),
        ("model.init_args.reference", {"class_path": "evil.run", "init_args": {"path": "harm"}}),
        ("evaluation.judge", {"class_path": "evil.run", "init_args": {"path": "harm"}}),
    ],
)  # fmt: skip
def test_so_it_is_wherever_a_class_may_stand(place: str, value: object, evil: Path, capsys) -> None:
    put(config := yaml.safe_load(Path("run.yaml").read_text()), place, value)
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    mistakes.refused(check, capsys, "mine.yaml")
    unharmed(evil)


def test_what_looks_like_a_class_path_within_plain_data_stays_data(evil: Path) -> None:
    """Where any value may stand nothing is made of it."""
    from jsonargparse import ArgumentParser

    from upo.runtime.class_paths import safe_parsing

    def function(value: object = None, values: dict[str, object] | None = None) -> None: ...

    safe_parsing()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(function)
    spec = {"class_path": "evil.run", "init_args": {"path": "harm"}}
    made = parser.instantiate(parser.parse_object({"value": spec, "values": {"x": spec}}))
    assert made["values"]["x"]["class_path"] == "evil.run" == made["value"]["class_path"]
    unharmed(evil)


# ---- run folders of others -----------------------------------------------------------------------------------------

FOREIGN = {
    "a method": ("model.class_path", "evil.Mine"),
    "a reward": ("data.rewards", {"x": {"class_path": "evil.MyWords"}}),
    "a reward's short form": ("data.rewards", {"x": "evil.MyWords"}),
    "a judge": ("evaluation.judge", {"class_path": "evil.MyWords"}),
    "a sampler": ("data.sampler", "evil.MySampler"),
    "a feed": ("data.feed", {"class_path": "evil.MyFeed"}),
    "another package": ("data.rewards", {"x": {"class_path": "sklearn.svm.SVC"}}),
    "through our modules": ("data.rewards", {"x": {"class_path": "upo.data.annotate.os.mkdir"}}),
    "a function as reward": ("data.rewards", {"x": {"class_path": "Function", "init_args": {"path": "evil:function"}}}),
    "a function within a mixture": (
        "data.rewards",
        {"x": {"class_path": "Mixture", "init_args": {"weights": {"a": 1.0}, "rewards": {
            "a": {"class_path": "Function", "init_args": {"path": "evil.function"}}}}}},
    ),
    "a function as judge": ("evaluation.judge", {"class_path": "Function", "init_args": {"path": "os:mkdir"}}),
    "a tokenizer": ("model.init_args.policy.tokenizer", "evil.tokenizer"),
    "a model that is called like a function": (
        "model.init_args.policy", {"path": "evil.tokenizer", "config": None, "tokenizer": None},
    ),
    "a data source": ("data.sources", [{"name": "evil.source"}]),
    "a benchmark's file": ("evaluation.tasks", ["evil/task.yaml"]),
    "a folder of benchmarks": ("evaluation.harness", {"include_path": "evil"}),
    "an address": (
        "evaluation.judge",
        {"class_path": "ChatJudge", "init_args": {"model": "m", "endpoint": "http://evil.example", "key": "SECRET"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FOREIGN)
def test_the_configuration_of_others_is_data(what: str, evil: Path, capsys) -> None:
    """Nothing is imported that it names; the sentence says what it is, and what to do."""
    place, value = FOREIGN[what]
    put(config := yaml.safe_load(Path("run/config.yaml").read_text()), place, value)
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    text = mistakes.refused(evaluate, capsys, "run")
    assert "--trust" in text and "run/config.yaml" in text
    assert not Path("imported").exists() and "evil" not in sys.modules
    unharmed(evil)


def test_trust_lets_it_be_code(evil: Path, capsys) -> None:
    """And only for that one run: the next is data again. The same by `load_run`."""
    put(config := yaml.safe_load(Path("run/config.yaml").read_text()), "model.class_path", "evil.Mine")
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    evaluate(["run", "--trust"])
    assert Path("imported").exists() and Path("run/evaluation.json").exists()
    assert "evil.Mine" in mistakes.refused(evaluate, capsys, "run")
    assert type(load_run("run", trust=True)[0]).__name__ == "Mine"
    with pytest.raises(UserError, match=r"evil\.Mine.*--trust"):
        load_run("run")


def test_what_the_command_says_is_trusted(evil: Path) -> None:
    """A judge of the user's own, beside a configuration of others."""
    evaluate(["run", "--judge", "evil.MyWords"])
    assert "policy/win_rate_vs_chosen" in json.loads(Path("run/evaluation.json").read_text())["metrics"]


def test_our_own_yaml_stays_code(evil: Path) -> None:
    """Training and looking at rewards, by a YAML that the user names."""
    put(config := yaml.safe_load(Path("run.yaml").read_text()), "data.rewards", {"x": {"class_path": "evil.MyWords"}})
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    rewards(["--config", "mine.yaml", "--out", "out"])
    assert Path("out/rewards.json").exists()


@pytest.mark.parametrize("options", [{"settings": {"base_url": "http://evil.example"}}, {"save_code": True}], ids=str)
def test_a_logger_of_others_sends_no_key_and_no_code(options: dict, here: Path, capsys) -> None:
    put(config := yaml.safe_load(Path("run/config.yaml").read_text()), "trainer.logger", {
        "class_path": "WandbLogger", "init_args": {"project": "x"}, "dict_kwargs": options,
    })  # fmt: skip
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    Path("run/wandb_id.txt").write_text("abc")
    assert "--trust" in mistakes.refused(evaluate, capsys, "run")


# ---- models of others ----------------------------------------------------------------------------------------------


def calls() -> list[tuple[Path, ast.Call]]:
    """Where transformers is asked for something that may bring code along."""
    found = []
    for file in (ROOT / "upo").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if owner.startswith("Auto") and owner != "AutoHfQuantizer" and node.func.attr.startswith("from_"):
                    found.append((file, node))
    return found


def test_every_call_says_that_code_is_not_trusted() -> None:
    assert len(calls()) > 15
    for file, call in calls():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("trust_remote_code") == "False", f"{file.name}:{call.lineno}"


def test_a_model_with_code_of_its_own_is_refused_unasked(content: dict, here: Path, capsys, monkeypatch) -> None:
    """transformers would ask on the terminal, and run it after a `y`."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    model, tokenizer = load_model("run")
    model.save_pretrained("theirs")
    tokenizer.save_pretrained("theirs")
    for name, data in own_code({"config.json": Path("theirs/config.json").read_bytes()}).items():
        Path("theirs", name).write_bytes(data)
    for main, args in (
        (generate, ["--model", "theirs", "--self_prompts", "2", "--judge", "Words", "--out", "o.jsonl"]),
        (evaluate, ["run", "--reference", "theirs"]),
        (check, ["run.yaml", "--model.policy", "{path: theirs, config: null}"]),
        (merge, ["run", "theirs", "--out", "out"]),
    ):
        assert "brings code of its own" in mistakes.refused(main, capsys, *args)
    unharmed(here)


def test_an_adapter_imports_nothing(content: dict, evil: Path, capsys) -> None:
    """peft would import the module that `megatron_core` names."""
    policy = tiny.policy()
    policy.model.save_pretrained("base")
    policy.tokenizer.save_pretrained("base")
    made = type(policy)("base", tokenizer="base", adapter=LoRA(r=2))
    made.build()
    weights = {f"policy.model.{k}": x for k, x in made.model.state_dict().items() if owner(k) == "default"}
    Path("adapter").mkdir()
    write_adapter({"policy_files": made.files(), "state_dict": weights}, Path("adapter"))
    file = Path("adapter/adapter_config.json")
    told = json.loads(file.read_text()) | {"megatron_config": {"x": 1}, "megatron_core": "evil"}
    file.write_text(json.dumps(told))
    for read in (
        lambda: load_model("adapter"),
        lambda: type(policy)("base", tokenizer="base", adapter=LoRA(r=2, path="adapter")).build(),
    ):
        with pytest.raises(UserError, match="Megatron"):
            read()
    assert "evil" not in sys.modules and not Path("imported").exists()


@pytest.mark.slow
def test_a_broken_model_folder_gives_one_sentence(here: Path, capsys) -> None:
    model, tokenizer = load_model("run")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        model.save_pretrained("broken")
        tokenizer.save_pretrained("broken")
        Path("broken", name).write_bytes(Path("broken", name).read_bytes()[:50])
        for main, args in (
            (evaluate, ["run", "--reference", "broken"]),
            (merge, ["run", "broken", "--out", "out"]),
            (fit, ["--config", "run.yaml", "--model.policy", "{path: broken, config: null, tokenizer: null}",
                   "--trainer.default_root_dir", "other"]),
        ):  # fmt: skip
            mistakes.refused(main, capsys, *args)


def test_a_good_one_is_read(content: dict, here: Path) -> None:
    """The cases above fail for what is wrong with them alone."""
    assert read_checkpoint(Path("run/checkpoints/step=2.ckpt"))["global_step"] == 2
    export(["run", "out"])
    evaluate(["run"])
    assert Path("out/model.safetensors").exists() and Path("run/evaluation.json").exists()
