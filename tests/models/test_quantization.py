"""4-bit weights stay as they were read on CPUs for which bitsandbytes has an order of its own."""

import ast
import math
import re
from pathlib import Path

import pytest
import tiny
import torch
from test_adapters import adapted, adapter_run, logps, of_model, saved
from torch import nn
from training import fit, make
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

import upo
from upo.export import export
from upo.methods import DPO
from upo.models.checkpoint import load_model
from upo.models.lora import LoRA
from upo.models.policy import Policy
from upo.models.quantization import is_quantized, reading
from upo.models.reference import AdapterReference
from upo.rewards.hub import load_scorer

UNITS = tiny.units([(5, [4, 7]), (3, [6, 2])])
modules = pytest.importorskip("bitsandbytes.nn.modules")


@pytest.fixture(params=[False, True], ids=["any CPU", "avx512_bf16"])
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CPU says to bitsandbytes: whether its layers may write weights anew in an order for avx512_bf16."""
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: request.param)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder."""
    return saved(tiny.policy(max_position_embeddings=256), tmp_path_factory.mktemp("base"))


@pytest.mark.usefixtures("cpu")
def test_log_probs_and_export(base, tmp_path, capsys):
    """The export is the twin whose 4-bit weights are written out; on the CPU it is as good as the run itself."""
    policy = adapted(base, learned=True, quantization="nf4")
    layer = policy.model.model.layers[0].mlp.up_proj
    assert layer.base_layer.weight.dtype == torch.uint8
    reference = AdapterReference()
    reference.build(policy)
    gap = (logps(policy) - of_model(policy.model)).abs().max()
    assert gap < 1e-3 and (logps(policy) - reference.logps(tiny.arrange(UNITS))).abs().max() > 0.1
    export(adapter_run(tmp_path / "run", policy), tmp_path / "merged", merge=True)
    assert "merging changes log-probs by" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(of_model(model), of_model(policy.model), rtol=1e-4, atol=1e-2)
    twin = AutoModelForCausalLM.from_pretrained(base, quantization_config=policy.model.config.quantization_config)
    exact = twin.dequantize().model.layers[0].mlp.up_proj.weight + layer.get_delta_weight("default")
    torch.testing.assert_close(model.model.layers[0].mlp.up_proj.weight, exact, rtol=1e-5, atol=1e-6)
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize("width", [32, 64])
def test_no_cpu_changes_a_loss(width, tmp_path, monkeypatch):
    """Layers of 64 columns have another order for avx512_bf16, and gradients that stop there; of 32 they have none."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width}
    path = saved(tiny.policy(**sizes, max_position_embeddings=256), tmp_path / "base")

    def losses(able: bool) -> dict[int, float]:
        monkeypatch.setattr(modules, "has_avx512bf16", lambda: able)
        policy = Policy(path=path, adapter=LoRA(r=4), quantization="nf4")
        made = make(DPO, policy=policy, reference=AdapterReference(), lr=3e-3)
        return fit(made, tmp_path, steps=3, pairs_per_step=8).watch.losses

    plain = losses(False)
    assert plain[0] == pytest.approx(math.log(2), abs=1e-6) and plain[2] < math.log(2) - 0.01
    assert losses(True) == plain


# ---- wherever a model is read --------------------------------------------------------------------------------------


def written(folder: Path, model: nn.Module) -> str:
    """A folder with 4-bit weights of a model and our tokenizer."""
    saved(tiny.policy(), folder)
    model.save_pretrained(folder)
    return str(folder)


def checkpoint(base: str, folder: Path) -> nn.Module:
    return load_model(adapter_run(folder / "run", adapted(base, quantization="nf4")))[0]


def folder_in_4_bits(base: str, folder: Path) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base, **reading("nf4", torch.float32))
    return load_model(written(folder, model))[0]


def scorer(base: str, folder: Path) -> nn.Module:
    config = tiny.policy().model.config
    LlamaForSequenceClassification(config).save_pretrained(folder / "whole")
    options = reading("nf4", torch.float32)
    model = LlamaForSequenceClassification.from_pretrained(folder / "whole", **options)
    return load_scorer(written(folder / "scorer", model), "reward model")[0]


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("read", [checkpoint, folder_in_4_bits, scorer])
def test_a_forward_pass_leaves_weights_as_they_were_read(read, base, tmp_path):
    model = read(base, tmp_path)
    layers = [layer for layer in model.modules() if is_quantized(layer)]
    before = [layer.weight.clone() for layer in layers]
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])
    assert layers and all(torch.equal(x, layer.weight) for x, layer in zip(before, layers, strict=True))


def test_whoever_reads_a_model_keeps_its_layout() -> None:
    """By the code: each function that calls `from_pretrained` of a model."""
    readers = []
    for file in Path(upo.__file__).parent.rglob("*.py"):
        for function in (x for x in ast.walk(ast.parse(file.read_text())) if isinstance(x, ast.FunctionDef)):
            code = ast.unparse(function)
            if re.search(r"AutoModel\w*\.from_pretrained\(", code) and file.parent.name != "bench":
                readers.append(f"{file.stem}.{function.name}")
                assert "quantization.keep_layout(model)" in code, readers[-1]
    assert len(readers) >= 4, readers


@pytest.mark.usefixtures("cpu")
def test_shapes_that_wait_for_another_ranks_weights(base):
    policy = Policy(path=base, adapter=LoRA(r=4), quantization="nf4")
    with torch.device("meta"):
        policy.build()
    layers = [layer for layer in policy.model.modules() if is_quantized(layer)]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)
