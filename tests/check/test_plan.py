"""The plan's arithmetic by hand, and against what training really takes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from attrs import evolve
from torch._subclasses.fake_tensor import FakeTensorMode

from upo.bench.model import config as llama
from upo.check import plan
from upo.check.find import find
from upo.check.plan import Setting, Shape, Work, checkpoint_bytes, memory
from upo.check.probe import activation_bytes, shape_of, skeleton
from upo.data.layout import collate_responses
from upo.models.hidden_states import hidden_states
from upo.models.policy import Policy
from upo.runtime.flops import Cost, prompt_lengths, rate_of

SHAPE = Shape(
    parameters=1000, trained=1000, matrices=600, outside=400, block=100, largest=200, vocabulary=20, width=10, layers=6,
    bytes=4,
)  # fmt: skip
WORK = Work(tokens=50, scored=30, micro_batches=1, activations=9000.0)
ALONE = Setting("single", 1, mixed=False, state_bytes=8.0, reference_bytes=4000.0)


def test_one_device_by_hand() -> None:
    found = memory(SHAPE, WORK, ALONE)
    head = 4 * 30 * 20 + 2 * 4 * 30 * 10 + 4 * 20 * 10  # probabilities, states, gradient of the head
    assert found.parts == {
        "weights": 4000, "gradients": 4000, "optimizer": 8000, "reference": 4000, "copies": 0,
        "activations": 9000, "head": head, "KV cache": 0,
    }  # fmt: skip
    assert found.peak == 16_000 + 9000 + head, "the backward pass begins before there are gradients"
    assert memory(SHAPE, evolve(WORK, micro_batches=2), ALONE).peak == found.peak + 4000
    short = memory(SHAPE, evolve(WORK, activations=0.0, scored=0), ALONE)
    assert short.peak == 16_000 + 4000 + 4000, "gradients, and as much again for the optimizer"
    on_cpu = memory(SHAPE, evolve(WORK, activations=0.0, scored=0), evolve(ALONE, gpu=False))
    assert on_cpu.peak == 16_000 + 4000 + 2 * 4 * 200


def test_mixed_precision_keeps_fp32_masters_and_bf16_copies() -> None:
    parts = memory(SHAPE, WORK, evolve(ALONE, mixed=True)).parts
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (4000, 4000, 8000)
    assert parts["copies"] == 2 * 600
    assert parts["head"] == 4 * 30 * 20 + 2 * 2 * 30 * 10 + 2 * 20 * 10 + 4 * 20 * 10


def test_ddp_adds_buckets_and_shares_nothing() -> None:
    alone, ddp = (memory(SHAPE, WORK, evolve(ALONE, strategy=s, devices=4)) for s in ("single", "ddp"))
    assert ddp.parts == alone.parts | {"copies": 4000}
    assert ddp.peak == alone.peak + 4000


def test_sharding_divides_what_is_kept() -> None:
    found = memory(SHAPE, WORK, evolve(ALONE, strategy="fsdp", devices=4, mixed=True)).parts
    assert (found["weights"], found["gradients"], found["optimizer"], found["reference"]) == (1000, 1000, 2000, 1000)
    assert found["copies"] == 2 * (400 + 2 * 100) + 4 * (400 + 100), "gathered weights, and gradients on their way"


def test_seven_billion_with_adam_on_eight() -> None:
    """fp32 masters, gradients, two states, bf16 reference: 18 bytes a parameter, 15.75 GB on each of eight."""
    shape = evolve(SHAPE, parameters=7_000_000_000, trained=7_000_000_000)
    setting = Setting("fsdp", 8, mixed=True, state_bytes=8.0, reference_bytes=14e9)
    parts = memory(shape, WORK, setting).parts
    assert sum(parts[n] for n in ("weights", "gradients", "optimizer", "reference")) == 15.75e9


def test_weights_below_an_adapter_in_4_bits() -> None:
    shape = evolve(SHAPE, trained=10, four_bit=600, adapter=True)
    parts = memory(shape, WORK, ALONE).parts
    assert parts["weights"] == 400 * 4 + 600 * 4.127 / 8
    sharded = memory(evolve(shape, matrix=40), WORK, Setting("fsdp", 4, True, 8.0, 0.0)).parts
    assert sharded["weights"] == parts["weights"] / 4
    gathered = 2 * 400 + 2 * 100 * 4.127 / 8
    assert sharded["copies"] == pytest.approx(gathered + 4 * 500 * 10 / 1000 + 2 * 40), "and a matrix in bfloat16"
    assert checkpoint_bytes(shape, 8.0) == 10 * (4 + 8), "the adapter and its states alone"
    assert checkpoint_bytes(SHAPE, 8.0) == 1000 * (4 + 8)


def test_checkpointing_keeps_the_inputs_of_the_layers_and_one_layer() -> None:
    parts = memory(SHAPE, WORK, evolve(ALONE, checkpointing=True)).parts
    assert parts["activations"] == 6 * 50 * 10 * 4 + 9000 / 6


def test_suggestions_fall_and_stop_at_the_longest_unit() -> None:
    setting = evolve(ALONE, strategy="ddp", devices=2, reference_bytes=9e6)
    work = evolve(WORK, tokens=4000, activations=9e6)
    found = plan.suggestions(SHAPE, work, setting, longest=1500)
    names, peaks = zip(*found, strict=True)
    assert list(peaks) == sorted(peaks, reverse=True)
    assert any("2000" in name for name in names) and not any("1000" in name for name in names)
    assert any("StoredReference" in name for name in names)
    assert not any("StoredReference" in n for n, _ in plan.suggestions(SHAPE, work, setting, 1500, False))


def test_disk_and_time() -> None:
    assert plan.checkpoint_bytes(SHAPE, 8.0) == 12_000
    assert [plan.checkpoints_kept(1000, 100, keep) for keep in (1, 3, -1)] == [2, 4, 10]
    assert plan.checkpoints_kept(50, 100, 3) == 1
    assert plan.hours(3.6e18, devices=2, rate=1e15, mfu=0.5) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_shapes_without_memory_keep_what_real_ones_keep(kind: str) -> None:
    """The same tensors as autograd really keeps, counted once; parameters left out."""
    real = tiny.policy(kind)
    responses = collate_responses(
        tiny.groups_of(tiny.units([(20, (10, 12)), (30, (5, 9))])), "packed", row_tokens=128, pad_id=0
    )
    own = {t.untyped_storage()._cdata for t in (*real.model.parameters(), *real.model.buffers())}
    kept, alive = {}, []

    def pack(x: torch.Tensor) -> torch.Tensor:
        alive.append(x)
        if (storage := x.untyped_storage())._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = hidden_states(real.model, responses)
    fake, mode = Policy(config=real.config, tokenizer="tiny.tokenizer"), FakeTensorMode(allow_non_fake_inputs=True)
    fake.model = skeleton(fake, mode)
    assert activation_bytes(fake, responses, mode, mixed=False, gpu=False) == sum(kept.values())
    assert activation_bytes(fake, responses, mode, mixed=True, gpu=True) < sum(kept.values())
    del out


def test_seven_billion_parameters_take_no_memory() -> None:
    from training import make

    from upo.methods import DPO

    policy, mode = (
        Policy(config=llama("7b", 32000), tokenizer="upo.bench.model.tokenizer"),
        FakeTensorMode(allow_non_fake_inputs=True),
    )
    policy.model = skeleton(policy, mode)
    shape = shape_of(make(DPO, policy=policy), mode)
    assert shape.parameters == shape.trained == 6_738_415_616
    assert shape.block == 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert shape.outside == 2 * 32000 * 4096 + 4096
    assert shape.matrices == 32 * (4 * 4096**2 + 3 * 4096 * 11008)


def test_needed_operations_of_a_batch_by_hand() -> None:
    """A prompt of 3 tokens with bodies of 2 and 1 (EOS is predicted, never read), in either layout."""
    cost = Cost(weights=100, scores=10, head=50)
    units = [tiny.unit([3, 4, 5], [6, 7, 2], [8, 2])]
    seen = (1 + 2 + 3) + (4 + 5) + 4
    for layout in ("packed", "padded"):
        responses = collate_responses(tiny.groups_of(units), layout, row_tokens=16, pad_id=0)
        assert prompt_lengths(responses) == [3]
        assert cost.of_responses(responses) == 2 * (100 * 6 + 10 * seen + 50 * 5)
    policy = tiny.policy("llama")
    assert Cost.of(policy.model).head == policy.model.lm_head.weight.numel()
    layers = sum(p.numel() for p in policy.model.model.layers.parameters() if p.dim() == 2)
    assert (Cost.of(policy.model).weights, Cost.of(policy.model).scores) == (layers, 2 * 32 * 2)


def test_rates_by_the_drivers_names() -> None:
    assert rate_of("NVIDIA A100-SXM4-40GB") == 312e12
    assert rate_of("NVIDIA H100 PCIe") == 756e12 and rate_of("NVIDIA H100 80GB HBM3") == 989e12
    assert rate_of("NVIDIA A10") == 125e12 and rate_of("Quadro P1") is None


QWEN = {
    "model_type": "qwen2", "vocab_size": 8192, "max_position_embeddings": 4096, "hidden_size": 256,
    "intermediate_size": 640, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize(
    ("model", "optimizer", "budget"),
    [
        pytest.param(llama("9M", 16384), "AdamW", 8192, marks=pytest.mark.nightly),
        pytest.param(llama("9M", 16384), "AdamW", 1200, marks=pytest.mark.slow),
        pytest.param(QWEN, "RMSprop", 8192, marks=pytest.mark.nightly),
    ],
    ids=["llama 9M", "llama 9M, micro-batches", "qwen2, untied"],
)
def test_the_plan_is_within_15_percent_of_what_training_takes(
    model: dict, optimizer: str, budget: int, tmp_path: Path
) -> None:
    draw = random.Random(0)

    def text(median: int, cap: int) -> str:
        count = min(cap, max(4, round(median * draw.lognormvariate(0, 0.8))))
        return " ".join(f"w{draw.randrange(4, 4096)}" for _ in range(count))

    rows = [{"prompt": text(120, 384) + " ", "chosen": text(55, 256), "rejected": text(55, 256)} for _ in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(name: str, shape: dict) -> Path:
        policy = {"config": shape, "tokenizer": "upo.bench.model.tokenizer"}
        steps = {"class_path": f"torch.optim.{optimizer}", "init_args": {"lr": 1e-6}}
        arguments = {"policy": policy, "reference": "FrozenReference", "optimizer": steps}
        source = {"name": "trl", "path": str(tmp_path / "pairs.jsonl")}
        config = {
            "model": {"class_path": "DPO", "init_args": arguments},
            "data": {"sources": [source], "validation": 0, "pairs_per_step": 8, "tokens_per_microbatch": budget},
            "trainer": {"max_steps": 3, "accelerator": "cpu", "enable_progress_bar": False}
            | {"default_root_dir": str(tmp_path / name)},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        return tmp_path / f"{name}.yaml"

    large, small = write("large", model), write("small", model | {"hidden_size": 32, "num_hidden_layers": 1})
    planned = find([large], [], None, None).memory.peak
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_ARENA_MAX": "1"}  # freed memory leaves the process
    command = [sys.executable, str(Path(__file__).with_name("peak.py")), str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = int(done.stdout.rpartition("peak ")[2])
    assert planned == pytest.approx(measured, rel=0.15)


def test_an_adapter_is_counted_as_it_is() -> None:
    from training import make

    from upo.methods import DPO
    from upo.models.lora import LoRA

    config = tiny.policy("llama").config
    real = Policy(config=config, tokenizer="tiny.tokenizer", adapter=LoRA(r=4, modules_to_save=["lm_head"]))
    real.build()
    fake = Policy(config=config, tokenizer="tiny.tokenizer", adapter=LoRA(r=4, modules_to_save=["lm_head"]))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake.model = skeleton(fake, mode)
    shape = shape_of(make(DPO, policy=fake), mode)
    assert shape.trained == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert shape.parameters == sum(p.numel() for p in real.parameters())
    assert shape.adapter and not shape.four_bit
