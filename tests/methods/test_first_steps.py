"""A run whose first steps do not reach what it trains ends with a sentence; one with a flat loss goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import tiny
import torch
from torch import Tensor, nn
from training import fit, make

import upo.methods
from upo.errors import RunFailed
from upo.methods import DPO, DROV, SFT, RSOHinge
from upo.methods.common.first_steps import check_reached
from upo.models import quantization
from upo.models.lora import LoRA
from upo.models.policy import Policy
from upo.models.reference import AdapterReference


class Before(pl.Callback):
    """Does something to a method before its first step."""

    def __init__(self, change: Callable[[Any], object]):
        self.change = change

    def on_train_start(self, trainer, pl_module):
        self.change(pl_module)


def first_layer(method: Any) -> nn.Module:
    return method.policy.model.model.layers[0]


def detach(method: Any) -> None:
    """The policy's last states."""
    norm = method.policy.model.model.norm
    norm.register_forward_hook(lambda module, inputs, output: output.detach())


def cut(method: Any) -> None:
    """Gradients end above the first of two layers."""
    first_layer(method).register_forward_hook(lambda module, inputs, output: output.detach())


def vanish(method: Any) -> None:
    """Gradients arrive, and are 0."""
    for p in method.policy.parameters():
        p.register_hook(torch.zeros_like)


def freeze(method: Any) -> None:
    """A module that the optimizer has already taken."""
    first_layer(method).requires_grad_(False)


def of_two_layers(**options: Any) -> Policy:
    config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"intermediate_size": 24, "max_position_embeddings": 256, "initializer_range": 0.2}
    return Policy(config=config, tokenizer="tiny.tokenizer", **options)


def frozen_layer() -> Policy:
    """A policy one of whose layers is not trained."""
    policy = of_two_layers()
    policy.build()
    policy.model.model.layers[0].requires_grad_(False)
    return policy


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (SFT, vanish, "gradient was exactly 0 in the first steps"),
        (DROV, vanish, "gradient was exactly 0 in the first steps"),
        (DROV, detach, r"20 of 27 trained parameters .*: `policy.model.model.embed_tokens.weight`"),
        (SFT, cut, r"10 of 21 trained parameters .*: `policy.model.model.embed_tokens.weight`"),
        (SFT, freeze, r"9 of 21 trained parameters .*: `policy.model.model.layers.0.self_attn.q_proj.weight`"),
    ],
)
def test_what_is_not_reached_is_named(kind: type, change: Callable, said: str, tmp_path: Path) -> None:
    """After three steps, however many more there would be."""
    method, watch = make(kind, policy=of_two_layers()), Count()
    with pytest.raises(RunFailed, match=said):
        fit(method, tmp_path, Before(change), watch)
    assert watch.steps == 2, "the third one updates nothing"


class Count(pl.Callback):
    """Steps that were finished."""

    steps = 0

    def on_train_batch_end(self, *_):
        self.steps += 1


def test_a_loss_of_nothing_that_is_trained(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="depends on no parameter that is trained"):
        fit(make(SFT), tmp_path, Before(lambda method: method.policy.requires_grad_(False)))


def test_the_last_step_of_a_short_run_decides(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="exactly 0"):
        fit(make(SFT), tmp_path, Before(vanish), steps=1)


# ---- what is not stopped -------------------------------------------------------------------------------------------


def test_a_frozen_layer(tmp_path: Path) -> None:
    """From the start: the optimizer does not know it."""
    method = make(SFT, policy=frozen_layer())
    before = first_layer(method).self_attn.q_proj.weight.clone()
    assert len(fit(method, tmp_path).watch.losses) == 6
    assert torch.equal(before, first_layer(method).self_attn.q_proj.weight)


@pytest.mark.parametrize("flat", [1, 6])
def test_a_hinge_that_is_satisfied(flat: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For one step or for all: such a batch asks nothing of the policy."""
    plain, calls = RSOHinge.loss, []

    def loss(self: Any, *sides: Any) -> Tensor:
        calls.append(sides)
        return plain(self, *sides) if len(calls) > flat else (0 * plain(self, *sides) - 1).relu()

    monkeypatch.setattr(RSOHinge, "loss", loss)
    assert len(fit(make(RSOHinge), tmp_path).watch.losses) == 6 == len(calls)


def test_weights_that_a_model_does_not_use() -> None:
    """A whole model may have some, e.g. cross attention; an adapter or a head may not, nor whole layers."""
    names = [f"policy.model.layers.{i}.{part}" for i in range(2) for part in ("attn", "cross")]
    reached = {name: "cross" not in name for name in names}
    with pytest.warns(UserWarning, match=r"2 of 4 trained parameters .* `policy.model.layers.0.cross`"):
        check_reached(reached, whole_model=True)
    for wrong in (reached | {names[2]: False}, reached | {"value_head.weight": False}, dict.fromkeys(names, False)):
        with pytest.raises(RunFailed, match="would not learn"):
            check_reached(wrong, whole_model=True)
    with pytest.raises(RunFailed, match="would not learn"):
        check_reached(reached, whole_model=False)
    check_reached(dict.fromkeys(names, True), whole_model=False)


# ---- 4-bit layers on CPUs ------------------------------------------------------------------------------------------


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """`packing(able)`: what a CPU says to bitsandbytes; the kernel of packed layers computes without gradient."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    plain = modules.bnb.matmul_4bit

    def matmul(x: Tensor, weight: Tensor, bias: Any = None, quant_state: Any = None) -> Tensor:
        packed = getattr(quant_state, "packing_format_for_cpu", False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not packed):
            return plain(x, weight, bias=bias, quant_state=quant_state)

    monkeypatch.setattr(modules.bnb, "matmul_4bit", matmul)
    return lambda able: monkeypatch.setattr(modules, "has_avx512bf16", lambda: able)


def four_bits(folder: Path, targets: Any) -> upo.methods.DPO:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 256}
    whole = tiny.policy(**sizes)
    for part in (whole.model, whole.tokenizer):
        part.save_pretrained(folder / "base")
    policy = Policy(path=str(folder / "base"), adapter=LoRA(r=4, target_modules=targets), quantization="nf4")
    return make(DPO, policy=policy, reference=AdapterReference(), lr=3e-3)


@pytest.mark.parametrize("able", [False, True], ids=["any CPU", "avx512_bf16"])
def test_4_bit_layers_train_on_every_cpu(able: bool, packing: Callable, tmp_path: Path) -> None:
    packing(able)
    losses = fit(four_bits(tmp_path, ["q_proj", "v_proj"]), tmp_path, pairs_per_step=8).watch.losses
    assert losses[5] < losses[0] - 0.01


@pytest.mark.parametrize(
    ("targets", "said"),
    [(["q_proj", "v_proj"], "depends on no parameter"), (["q_proj", "down_proj"], "4 of 8 trained .*q_proj")],
)
def test_4_bit_layers_without_gradient(targets: Any, said: str, packing, tmp_path, monkeypatch) -> None:
    """What those CPUs would do to a run if weights were packed for them."""
    packing(True)
    monkeypatch.setattr(quantization, "keep_layout", lambda model: None)
    with pytest.raises(RunFailed, match=said):
        fit(four_bits(tmp_path, targets), tmp_path)
