"""FSDP2 on CPU ranks, through the command line: the losses of one device, and checkpoints that go anywhere.

Tiny Llamas and eight pairs: uneven micro-batches, dummies, norm clipping, a value head, lists of unequal length.
"""

import json
import pickle
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from rotation import DAY
from test_trajectories import losses
from torch import nn
from training import pairs_file

from upo.callbacks.checkpoint_io import AtomicCheckpointIO
from upo.errors import UserError
from upo.evaluation.runs import load_run
from upo.models.adapters import owner
from upo.models.checkpoint import load_model
from upo.models.checkpoint_files import check_resumable, latest, read_checkpoint, read_folder
from upo.models.export import export
from upo.models.head import layers
from upo.models.merged_adapter import probe
from upo.runtime.checksums import read_sums

pytestmark = pytest.mark.turns(3)

MODEL = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip
NO_LIMIT = pytest.mark.timeout(7200)
CONSTANT = {"class_path": "torch.optim.lr_scheduler.ConstantLR", "init_args": {"factor": 1.0}}


def sharded(**options: object) -> tuple[str, ...]:
    """Arguments of a sharded run; all in float32, so that it equals the others."""
    value = {"class_path": "upo.parallel.strategy.Sharded", "init_args": {"param_dtype": None, **options}}
    return ("--trainer.strategy", json.dumps(value))


def config(file: Path, method: str, tied: bool) -> None:
    """Ten steps of four pairs on eight; "LoRA" is DPO of an adapter on a model folder, "QLoRA" on its 4-bit weights."""
    policy: dict[str, object] = {"config": MODEL | {"tie_word_embeddings": tied}, "tokenizer": "tiny.tokenizer"}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}}
    init = {"policy": policy, "reference": "FrozenReference", "optimizer": optimizer, "scheduler": CONSTANT}
    if method in ("LoRA", "QLoRA"):
        adapter = {"class_path": "LoRA", "init_args": {"r": 3, "target_modules": ["q_proj", "up_proj", "lm_head"]}}
        init["policy"] = {"path": base(file.parent / "base", tied, biases=method == "QLoRA"), "adapter": adapter}
        init["policy"] |= {"quantization": "nf4"} if method == "QLoRA" else {}
        init["reference"], method = "AdapterReference", "DPO"
    source = {"name": "tiny.scored_lists" if method == "NCAListwise" else "hh", "path": pairs_file(file.parent)}
    data = {"sources": [source], "validation": 0, "max_length": 256, "pairs_per_step": 4, "tokens_per_microbatch": 150}
    if method in ("UPO", "MODPO"):
        init["reward_weights"] = {"length": 0.01}
        init |= {"value_dropout": 0.0, "value_warmup_steps": 2} if method == "UPO" else {}
        data |= {"rewards": {"length": "Words"}, "rewards_cache": str(file.parent / "cache")}
    trainer = {"max_steps": 10, "max_epochs": -1, "gradient_clip_val": 1, "accelerator": "cpu"}
    trainer |= {"enable_progress_bar": False}
    model = {"class_path": method, "init_args": init}
    file.write_text(json.dumps({"model": model, "data": data, "trainer": trainer}))


def base(folder: Path, tied: bool, biases: bool = False) -> str:
    """A model folder to put an adapter on; the same each time."""
    if not folder.exists():
        policy = tiny.policy(**MODEL | {"tie_word_embeddings": tied, "attention_bias": biases})
        torch.manual_seed(1)
        for name, p in policy.model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(p)
        policy.model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def train(upo_fit, tmp_path: Path) -> Callable[..., list[float]]:
    """`train(method, folder, *args, ranks=1, tied=True)`: losses of the steps so far."""

    def run(method: str, folder: str, *args: str, ranks: int = 1, tied: bool = True) -> list[float]:
        config(file := tmp_path / f"{method}.yaml", method, tied)
        where = ("--trainer.default_root_dir", folder, "--trainer.devices", str(ranks))
        done = upo_fit("--config", file, *where, *args, ranks=ranks)
        assert done.code == 0, done.text
        return losses(tmp_path / folder)

    return run


# ---- the losses of one device --------------------------------------------------------------------------------------

TIED = {"UPO": True, "NCAListwise": False, "LoRA": True, "MODPO": True, "DPO": True, "KTO": False, "QLoRA": True}
"""Whether embeddings and head share their weights."""
WAYS = {"DDP 2": (2, ("--trainer.strategy", "ddp")), "sharded 2": (2, sharded()), "sharded 4": (4, sharded())}
QUICK = [("UPO", "sharded 2"), ("MODPO", "DDP 2")]
SLOW = [("NCAListwise", "sharded 2"), ("LoRA", "sharded 2")]
CASES = [(method, way) for method in TIED for way in WAYS]


@pytest.fixture(scope="module")
def known() -> dict[tuple, list[float]]:
    """Losses by method and way: each is computed once."""
    return {}


def plain(known: dict, train, method: str, way: str | None = None) -> list[float]:
    if (method, way) not in known:
        ranks, args = WAYS.get(way or "", (1, ()))
        known[method, way] = train(method, way or "one", *args, ranks=ranks, tied=TIED[method])
    return known[method, way]


def when(method: str, way: str) -> list[pytest.MarkDecorator]:
    """By default some, in the slow suite of a day four shards of a third, at night the rest."""
    today = (method, way) in SLOW or (way == "sharded 4" and list(TIED).index(method) % 3 == DAY % 3)
    return [] if (method, way) in QUICK else [pytest.mark.slow if today else pytest.mark.nightly]


@pytest.mark.turns(1)
@pytest.mark.parametrize(("method", "way"), [pytest.param(*c, marks=when(*c)) for c in CASES])
def test_ranks_equal_one(method: str, way: str, known, train) -> None:
    expected = plain(known, train, method)
    assert len(expected) == 10 and len(set(expected)) == 10
    assert plain(known, train, method, way) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, {"reshard_after_forward": False, "reduce_each_microbatch": True}),
        (2, {"cpu_offload": True}),
        pytest.param(4, {}, marks=pytest.mark.nightly),
        (4, {"shard_size": 2}),
    ],
    ids=str,
)
def test_no_option_changes_a_loss(ranks: int, options: dict, known, train) -> None:
    """With activation checkpointing; on four ranks some have nothing but dummies."""
    expected = plain(known, train, "UPO")
    args = (*sharded(**options), "--model.policy.activation_checkpointing", "true")
    assert train("UPO", "many", *args, ranks=ranks) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "method", [pytest.param("UPO", marks=pytest.mark.slow), pytest.param("KTO", marks=pytest.mark.nightly)]
)
def test_a_rank_without_a_pair_does_not_hang(method: str, train) -> None:
    """One pair a step, two ranks."""
    one = ("--data.pairs_per_step", "1")
    expected = train(method, "one", *one)
    assert train(method, "two", *one, *sharded(), ranks=2) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.nightly) for m in ("UPO", "LoRA")]
    + [pytest.param("QLoRA", marks=pytest.mark.slow)],
)
def test_a_stored_reference_is_filled_in_shards(method: str, known, train, tmp_path: Path) -> None:
    """By two ranks, then read by four; one rank would compute the same numbers."""
    expected = plain(known, train, method)
    stored = ("--model.reference", "StoredReference", "--model.reference.folder", str(tmp_path / "store"))
    for folder, ranks in (("first", 2), ("second", 4), ("alone", 1)):
        args = (*(sharded() if ranks > 1 else ()), *stored)
        assert train(method, folder, *args, ranks=ranks) == pytest.approx(expected, abs=1e-5)
        files = sorted((tmp_path / "store").rglob("*.safetensors"))
        assert len(files) == 2, "one of each rank that filled it, and no further one"


@pytest.mark.slow
def test_bfloat16_layers_with_float32_masters(known, train, tmp_path: Path) -> None:
    """Near the float32 run until rounding has moved the weights; masters and moments stay float32."""
    expected = plain(known, train, "UPO")
    got = train("UPO", "two", *sharded(param_dtype="bfloat16"), ranks=2)
    assert got[:2] == pytest.approx(expected[:2], abs=0.01) and got != expected
    content = read_folder(latest(tmp_path / "two"))
    tensors = [*content["state_dict"].values()]
    tensors += [x for state in content["optimizer_0"]["state"].values() for x in state.values()]
    assert {x.dtype for x in tensors} == {torch.float32}


@pytest.mark.slow
def test_a_trained_model_is_read_by_one_rank(train, stories260k: str, tmp_path: Path) -> None:
    """Weights, tied or not, and rotary buffers of a checkpoint, in the policy and in a reference of its own."""
    init = json.dumps({"class_path": "FrozenReference", "init_args": {"path": stories260k}})
    policy = {"path": stories260k, "config": None, "tokenizer": None, "dtype": "float64"}
    args = ("--model.policy", json.dumps(policy), "--model.reference", init)
    expected = train("DPO", "one", *args)
    assert train("DPO", "two", *args, *sharded(), ranks=2) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt_neox", "gpt2", "phi"])
def test_decoder_layers_are_found(kind: str) -> None:
    policy = tiny.policy(kind)
    assert len(layers(policy.model)) == 2
    assert len({type(layer) for layer in layers(policy.model)}) == 1


# ---- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sharded_run_goes_on_anywhere(known, train, tmp_path: Path) -> None:
    """On two ranks bit for bit, on one within rounding; and its policy leaves without ranks.

    The end of a run is saved though it falls between two saves, and the link to the last checkpoint follows.
    """
    whole = plain(known, train, "UPO", "sharded 2")
    until = ("--trainer.max_steps", "5", "--checkpoint.every_n_train_steps", "3")
    assert train("UPO", "cut", *sharded(), *until, ranks=2) == whole[:5]
    folder = latest(tmp_path / "cut")
    assert folder.is_dir() and folder.name == "step=5.ckpt" and not list(folder.parent.glob(".*"))
    assert (folder.parent / "last.ckpt").resolve() == folder
    (tmp_path / "cut" / "summary.json").unlink()
    (folder.parent / ".step=7.ckpt.partial").mkdir()  # killed while it was written
    state = AtomicCheckpointIO().load_checkpoint(folder)["optimizer_states"][0]
    assert sorted(state["state"]) == [i for group in state["param_groups"] for i in group["params"]]
    exported(tmp_path / "cut", tmp_path / "exported")
    resumed = train("UPO", "one", "--ckpt_path", str(folder))
    assert resumed == pytest.approx(whole[4:], abs=1e-5)  # the checkpoint knows the step before
    (tmp_path / "cut").rename(tmp_path / "two")
    checked(folder := tmp_path / "two" / "checkpoints" / folder.name)
    assert train("UPO", "two", *sharded(), "--ckpt_path", "last", ranks=2) == whole
    assert {path.name for path in folder.parent.iterdir()} == {"step=10.ckpt", "last.ckpt", "scores.json"}


def checked(folder: Path) -> None:
    """Each rank has made the sums of what it wrote, nothing is without; a changed bit is refused."""
    sums = {rank: read_sums(folder / f"{rank}.sha256") for rank in (0, 1)}
    there = {path.name for path in folder.iterdir() if path.suffix != ".sha256"}
    assert {name for own in sums.values() for name in own} == there
    assert any(name.startswith("__1_") for name in sums[1]) and not any(name.startswith("__0_") for name in sums[1])
    check_resumable(folder)
    part = next(folder / name for name in sums[1])
    whole = part.read_bytes()
    part.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    for read in (check_resumable, read_checkpoint, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(UserError, match=f"another sha256 of {part.name}"):
            read(folder)
    part.write_bytes(whole)


def exported(run: Path, out: Path) -> None:
    """The run's policy and value head by `load_run`, its policy by `load_model` and `export`: the same."""
    export(run, out)
    method, *_ = load_run(run, trust=True)
    ids = torch.arange(3, 20)[None]
    models = [method.policy.model, load_model(run)[0], load_model(out)[0]]
    live, *others = (model(input_ids=ids, use_cache=False).logits for model in models)
    for logits in others:
        assert torch.equal(logits, others[0]) and torch.allclose(logits, live, atol=1e-5)
    assert models[1].lm_head.weight is models[1].model.embed_tokens.weight
    saved = read_checkpoint(latest(run))["state_dict"]
    assert all(torch.equal(saved[f"value_head.{n}"], p) for n, p in method.value_head.named_parameters())


@pytest.mark.parametrize(
    "method", [pytest.param("LoRA", marks=pytest.mark.nightly), pytest.param("QLoRA", marks=pytest.mark.slow)]
)
def test_an_adapters_run_goes_on_anywhere(method: str, known, train, tmp_path: Path) -> None:
    """Checkpoints hold the adapter alone, from one rank, two and four; exports are the trained policy."""
    whole = plain(known, train, method)
    train(method, "cut", *sharded(), "--trainer.max_steps", "5", ranks=2)
    (tmp_path / "cut" / "summary.json").unlink()
    content = read_checkpoint(latest(tmp_path / "cut"))["state_dict"]
    assert content and all(owner(name) == "default" for name in content)
    for folder, ranks in (("two", 2), ("four", 4)):
        shutil.copytree(tmp_path / "cut", tmp_path / folder, symlinks=True)
        assert train(method, folder, *sharded(), "--ckpt_path", "last", ranks=ranks) == pytest.approx(whole, abs=1e-5)
    shutil.copytree(tmp_path / "cut", tmp_path / "alone", symlinks=True)
    assert train(method, "alone", "--ckpt_path", "last") == pytest.approx(whole, abs=1e-5)
    train(method, "file", "--trainer.max_steps", "5")
    (tmp_path / "file" / "summary.json").unlink()
    resumed = train(method, "file", *sharded(), "--ckpt_path", "last", ranks=2)
    assert resumed == pytest.approx(whole, abs=1e-5)

    export(tmp_path / "two", tmp_path / "adapter")
    export(tmp_path / "two", tmp_path / "merged", merge=True)
    live = probe(load_run(tmp_path / "two", trust=True)[0].policy.model)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {f.name for f in (tmp_path / "adapter").iterdir()}
    whole_weights = ["adapter"] if method == "LoRA" else []  # what peft puts an adapter's folder on
    for name in (*whole_weights, "merged"):
        torch.testing.assert_close(probe(load_model(tmp_path / name)[0]), live, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_ends_between_two_saves(known, train, tmp_path: Path) -> None:
    """After a save, whose link it replaces, and after a stop."""
    whole = plain(known, train, "UPO")
    args = (*sharded(), "--checkpoint.every_n_train_steps", "6")
    train("UPO", "cut", *args, "--trainer.max_steps", "8", ranks=2)
    (tmp_path / "cut" / "summary.json").unlink()
    assert train("UPO", "cut", *args, "--ckpt_path", "last", ranks=2) == pytest.approx(whole, abs=1e-5)
    checkpoints = tmp_path / "cut" / "checkpoints"
    assert latest(tmp_path / "cut").name == "step=10.ckpt" and not list(checkpoints.glob(".*"))
    assert (checkpoints / "last.ckpt").resolve() == checkpoints / "step=10.ckpt"


@pytest.mark.slow
def test_one_rank_goes_on_as_two(known, train, tmp_path: Path) -> None:
    expected = plain(known, train, "UPO")
    train("UPO", "cut", "--trainer.max_steps", "5")
    (tmp_path / "cut" / "summary.json").unlink()
    resumed = train("UPO", "cut", *sharded(), "--ckpt_path", "last", ranks=2)
    assert resumed == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed_equals_uninterrupted(signal_: int, train, upo_fit, tmp_path: Path) -> None:
    """With value dropout, whose random numbers differ from rank to rank; a checkpoint each step."""
    args = (*sharded(), "--model.value_dropout", "0.1", "--checkpoint.every_n_train_steps", "1")
    expected = train("UPO", "whole", *args, ranks=2)
    folder = tmp_path / "killed"
    reached = lambda: any((folder / "checkpoints").glob("step=3*.ckpt"))  # noqa: E731
    where = ("--trainer.default_root_dir", "killed", "--trainer.devices", "2")
    killed = upo_fit(
        "--config", tmp_path / "UPO.yaml", *where, *args, ranks=2, kill_when=reached, signal_=signal_
    )  # fmt: skip
    assert killed.code == (143 if signal_ == signal.SIGTERM else -signal_), killed.text
    assert train("UPO", "killed", *args, "--ckpt_path", "last", ranks=2) == expected


@pytest.mark.parametrize(
    "kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(20, marks=[pytest.mark.nightly, NO_LIMIT])]
)
def test_one_rank_is_killed_again_and_again(kills: int, train, upo_fit, tmp_path: Path) -> None:
    """At random steps, every other time while it saves; the other rank follows, as launchers see to."""
    args = (*sharded(), "--model.value_dropout", "0.1", "--trainer.max_steps", str(3 * kills + 4))
    args = (*args, "--checkpoint.every_n_train_steps", "1")
    expected = train("UPO", "whole", *args, ranks=2)
    folder, draw = tmp_path / "killed", random.Random(kills)
    where = ("--config", tmp_path / "UPO.yaml", "--trainer.default_root_dir", "killed", "--trainer.devices", "2")
    saving = lambda: any((folder / "checkpoints").glob(".*.partial"))  # noqa: E731
    for i, step in enumerate(sorted(draw.sample(range(2, 3 * kills), kills))):

        def due(i: int = i, step: int = step) -> bool:
            there = any(_step(p) >= step for p in (folder / "checkpoints").glob("step=*.ckpt"))
            return there and (i % 2 == 0 or saving())

        resume = ("--ckpt_path", "last") if i else ()
        killed = upo_fit(*where, *args, *resume, ranks=2, kill_when=due, victim=draw.randrange(2))
        assert -signal.SIGKILL in killed.codes, f"kill {i} at step {step}: {killed.text}"
    assert train("UPO", "killed", *args, "--ckpt_path", "last", ranks=2) == expected


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step=").partition("-")[0])


class Code:
    def __reduce__(self) -> tuple:
        return (print, ("code ran",))


def test_a_folder_that_would_run_code_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "x.ckpt").mkdir()
    (tmp_path / "x.ckpt" / ".metadata").write_bytes(pickle.dumps(Code()))
    with pytest.raises(pickle.UnpicklingError, match="print has no place in a checkpoint"):
        read_folder(tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="is broken or no checkpoint"):
        load_model(tmp_path / "x.ckpt")
    assert capsys.readouterr().out == ""


# ---- what does not go ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (sharded(), "this run has one for each copy"),
        (("--trainer.strategy.class_path", "ModelParallelStrategy"), "would shard nothing"),
    ],
    ids=["one device", "Lightning's own"],
)
def test_a_sharded_run_that_shards_nothing_is_refused(args, error: str, upo_fit, tmp_path: Path) -> None:
    config(file := tmp_path / "DPO.yaml", "DPO", True)
    done = upo_fit("--config", file, *args)
    assert done.code == 2 and error in done.text, done.text


ADAPTER = json.dumps({"target_modules": ["lm_head"], "modules_to_save": ["norm"]})
TWO_DTYPES = ("--model.policy.dtype", "bfloat16", "--model.policy.adapter.init_args", ADAPTER)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "error"),
    [
        (
            ("--trainer.callbacks+", "upo.callbacks.reference_sync.ReferenceSync"),
            "ReferenceSync moves whole models only",
        ),
        (sharded(shard_size=3), "shard_size=3 must divide"),
        (TWO_DTYPES, "trains a layer in one dtype"),
    ],
    ids=["moving", "uneven", "two dtypes"],
)
def test_what_works_on_whole_models_is_refused(args, error: str, upo_fit, tmp_path: Path) -> None:
    method = "LoRA" if "policy" in args[0] else "DPO"
    config(file := tmp_path / "run.yaml", method, True)
    done = upo_fit("--config", file, "--trainer.devices", "2", *sharded(), *args, ranks=2)
    assert done.code == 2 and error in done.text, done.text
