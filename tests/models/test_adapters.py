"""LoRA: what trains, what it is measured against, what checkpoints and exports hold, and what is refused."""

import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from test_export import run_folder
from test_trajectories import losses
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.utils._pytree import tree_leaves
from training import fit, make
from transformers import AutoModelForCausalLM, AutoTokenizer

from upo.callbacks.rounds import Rounds
from upo.errors import UserError
from upo.evaluate import evaluate
from upo.methods import CSFT, DPO, TDPO2, UPO, SparsePO
from upo.models import lora as lora_module
from upo.models.adapters import START, owner
from upo.models.checkpoint import load_model
from upo.models.export import export
from upo.models.lora import LoRA
from upo.models.merged_adapter import merged, probe
from upo.models.policy import Policy
from upo.models.reference import AdapterReference, FrozenReference, initial_policy
from upo.models.stored_reference import StoredReference, weights_hash
from upo.models.weighted_sum import merge
from upo.rewards import Sentiment
from upo.rewards.length import Words
from upo.rollout.preference_set import generate
from upo.runtime.optimizers import checked

pytestmark = pytest.mark.turns(3)

UNITS = tiny.units([(5, [4, 7]), (3, [6, 2])])

KINDS = {
    "plain": {},
    "named": {"target_modules": ["q_proj", "down_proj"], "rslora": True},
    "DoRA": {"dora": True},
    "head": {"target_modules": ["v_proj", "lm_head"]},
    "whole head": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["v_proj", "embed_tokens"]},
}


TIED = [("plain", True), ("DoRA", False), ("head", True), ("head", False), ("whole head", True), ("embeddings", True)]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder."""
    folder = tmp_path_factory.mktemp("base")
    saved(tiny.policy(max_position_embeddings=256), folder)
    return str(folder)


def saved(policy: Policy, folder: Path) -> str:
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return str(folder)


def adapted(
    model: str, /, seed: int = 0, quantization: str | None = None, learned: bool = False, r: int = 4, **options
) -> Policy:
    """A policy with a fresh adapter, or one that has learned something."""
    torch.manual_seed(seed)
    policy = Policy(path=model, adapter=LoRA(r=r, **options), quantization=quantization)
    policy.build()
    if learned:
        with torch.no_grad():
            for parameter in (p for p in policy.parameters() if p.requires_grad):
                parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    return policy


def adapter_run(folder: Path, policy: Policy) -> Path:
    """A run folder with one checkpoint of the policy."""
    run = run_folder(folder, policy)
    file = run / "checkpoints" / "step=7.ckpt"
    content = torch.load(file)
    content["state_dict"] = {f"policy.{k}": v for k, v in policy.state_dict().items()}
    torch.save(content, file)
    return run


def logps(policy: Policy, layout: str = "packed") -> torch.Tensor:
    with torch.no_grad():
        return policy(tiny.arrange(UNITS, layout))["logps"]


def of_model(model) -> torch.Tensor:
    """The same through the model's own logits."""
    plain = type("Plain", (), {"model": model})
    return torch.stack([tiny.plain_logps(plain, u.prompt, r).sum() for u in UNITS for r in u.responses]).detach()


# ---- the model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_and_alone_learns(kind, base):
    policy, plain = adapted(base, **KINDS[kind]), Policy(path=base)
    plain.build()
    reference = AdapterReference()
    reference.build(policy)
    for layout in ("packed", "padded"):
        responses = tiny.arrange(UNITS, layout)
        gap = policy(responses)["logps"] - reference.logps(responses)
        # DoRA divides columns by their lengths and multiplies with them
        assert gap.abs().max() <= (1e-4 if kind == "DoRA" else 0), layout
        torch.testing.assert_close(reference.logps(responses), logps(plain, layout), rtol=0, atol=0)
    learning = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert learning and all(owner(name) == "default" for name in learning)
    policy(tiny.arrange(UNITS))["logps"].sum().backward()
    for name, parameter in policy.named_parameters():
        assert (parameter.grad is not None) == (name in learning), name


@pytest.mark.parametrize(("kind", "tied"), TIED)
def test_log_probs_are_those_of_the_models_own_logits(kind, tied, tmp_path):
    path = saved(tiny.policy(tie_word_embeddings=tied, max_position_embeddings=256), tmp_path)
    policy = adapted(path, learned=True, **KINDS[kind])
    ours = logps(policy)
    torch.testing.assert_close(ours, of_model(policy.model), rtol=1e-5, atol=1e-4)
    reference = AdapterReference()
    reference.build(policy)
    assert (ours - reference.logps(tiny.arrange(UNITS))).abs().max() > 0.1
    torch.testing.assert_close(logps(policy), ours, rtol=0, atol=0, msg="the adapter is on again")


def test_gradients_are_those_of_full_training_through_the_product(base):
    """W + s B A: dL/dB = s dL/dW A^T and dL/dA = s B^T dL/dW, with dL/dW of full training at the merged weights."""
    policy = adapted(base, learned=True, target_modules=["up_proj"], alpha=6, modules_to_save=[])
    policy(tiny.arrange(UNITS))["logps"].sum().backward()
    layer = policy.model.model.layers[1].mlp.up_proj
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    whole = adapted(base, learned=True, target_modules=["up_proj"], alpha=6)
    whole.adopt(merged(whole.model))
    whole.requires_grad_(True)
    whole(tiny.arrange(UNITS))["logps"].sum().backward()
    full = whole.model.model.layers[1].mlp.up_proj.weight.grad
    scale = 6 / 4
    torch.testing.assert_close(b.grad, scale * full @ a.T.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(a.grad, scale * b.T.detach() @ full, rtol=1e-3, atol=1e-4)


def test_half_precision_weights_below_an_adapter_in_float32(base):
    policy = Policy(
        path=base, dtype="bfloat16", adapter=LoRA(r=4, dora=True, target_modules=["v_proj", "embed_tokens"])
    )
    policy.build()
    kinds = {p.dtype for p in policy.parameters() if p.requires_grad}
    assert kinds == {torch.float32}, "steps of 1e-5 would vanish in bfloat16"
    assert policy.model.model.embed_tokens.weight.dtype == torch.bfloat16
    torch.testing.assert_close(logps(policy), logps(adapted(base)), rtol=0.02, atol=0.5)


# ---- training ------------------------------------------------------------------------------------------------------


def method(kind, path: str, lora: LoRA | None = None, reference=None, **options):
    extra = {"reference": reference or AdapterReference()} if kind.needs.reference is not None else {}
    return make(kind, policy=Policy(path=path, adapter=lora or LoRA(r=4)), lr=3e-3, **extra, **options)


@pytest.mark.parametrize("kind", [DPO, UPO, TDPO2, SparsePO])
def test_methods_train_the_adapter_alone(kind, base, tmp_path, capsys):
    """UPO has a value head beside it, TDPO asks the reference for each token's divergence, SparsePO for its layers."""
    options = {"reward_weights": {"words": 1.0}, "value_warmup_steps": 0} if kind is UPO else {}
    made = method(kind, base, **options)
    rewards = {"rewards": {"words": Words()}} if kind is UPO else {}
    after = fit(made, tmp_path, steps=3, pairs_per_step=8, **rewards).watch.losses
    assert after[2] < after[0] - 0.01
    if kind is DPO:
        assert after[0] == pytest.approx(math.log(2), abs=1e-6)
    plain = Policy(path=base)
    plain.build()
    below = made.reference.model.weights()
    assert all(torch.equal(x, below[name]) for name, x in plain.weights().items())
    assert f"reference: {base} with its adapter off" in capsys.readouterr().out


def test_a_checkpoint_holds_the_adapter_and_the_heads(base, tmp_path):
    options = {"reward_weights": {"words": 1.0}}
    done = fit(method(UPO, base, **options), tmp_path, steps=2, save_every=2, rewards={"words": Words()})
    content = torch.load(tmp_path / "step=2.ckpt", weights_only=True)
    names = content["state_dict"].keys()
    assert all(owner(n) == "default" for n in names if n.startswith("policy.")) and any(
        "value_head" in n for n in names
    )
    again = method(UPO, base, **options)
    again.configure_model()
    again.load_state_dict(content["state_dict"])
    assert torch.equal(logps(again.policy), logps(done.method.policy))
    lacking = {n: x for n, x in content["state_dict"].items() if "layers.1.mlp.up_proj" not in n}
    with pytest.raises(RuntimeError, match=r"Missing key.*layers\.1\.mlp\.up_proj\.lora_A"):
        again.load_state_dict(lacking)


def test_an_adapter_belongs_to_one_model(base, tmp_path):
    """By its weights, wherever they lie: a copy will do, another seed's model at the same place will not."""
    below = tmp_path / "below"
    shutil.copytree(base, below)
    fit(method(DPO, str(below)), tmp_path, steps=2, save_every=2)
    run = run_folder(tmp_path / "run", tiny.policy())
    file = run / "checkpoints" / "step=7.ckpt"
    shutil.copy(tmp_path / "step=2.ckpt", file)
    assert load_model(run)
    fit(method(DPO, base), tmp_path, steps=3, ckpt_path=str(file))
    shutil.rmtree(below)
    saved(tiny.policy(seed=1, max_position_embeddings=256), below)
    for case in (
        lambda: load_model(run),
        lambda: export(run, tmp_path / "merged", merge=True),
        lambda: fit(method(DPO, str(below)), tmp_path, steps=3, ckpt_path=str(file)),
    ):
        with pytest.raises(UserError, match=r"was trained on other weights than those at `.*below` now"):
            case()
    export(run, tmp_path / "adapter")
    content = torch.load(file, weights_only=True)
    del content["adapter_base"]
    torch.save(content, file)
    assert load_model(run), "an older checkpoint does not say"


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(base, tmp_path):
    whole = fit(method(DPO, base), tmp_path, steps=6).watch.losses
    fit(method(DPO, base), tmp_path, steps=6, stop_at=5, save_every=3)
    late = fit(method(DPO, base), tmp_path, steps=6, ckpt_path=str(tmp_path / "step=3.ckpt")).watch.losses
    assert late == {step: whole[step] for step in (3, 4, 5)}


# ---- where training starts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "where"), [("plain", "run"), ("DoRA", "folder"), ("whole head", "folder")])
def test_an_adapter_to_start_from_is_the_reference(kind, where, base, tmp_path, capsys):
    first = adapted(base, learned=True, **KINDS[kind])
    source = adapter_run(tmp_path / "sft", first)
    if where == "folder":
        export(source, tmp_path / "exported")
        source = tmp_path / "exported"
    made = method(DPO, base, LoRA(path=str(source)))
    done = fit(made, tmp_path, steps=3, save_every=3)
    assert done.watch.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert f"with the adapter {source}" in capsys.readouterr().out
    start = made.reference.logps(tiny.arrange(UNITS))
    torch.testing.assert_close(start, logps(first), rtol=0, atol=0)
    assert (logps(made.policy) - start).abs().max() > 0.01
    names = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["state_dict"]
    assert not [n for n in names if owner(n) == START], "it is read again from its own place"


def test_a_stored_reference_is_that_of_full_training(base, tmp_path):
    """The store's key is that of the model below, so that a run that trains all weights finds the same numbers."""
    whole = make(DPO, policy=Policy(path=base), reference=StoredReference(folder=str(tmp_path / "store")))
    fit(whole, tmp_path, steps=2)
    shards = sorted((tmp_path / "store").rglob("*.safetensors"))
    lora = method(DPO, base, reference=StoredReference(folder=str(tmp_path / "store")))
    done = fit(lora, tmp_path, steps=3)
    assert sorted((tmp_path / "store").rglob("*.safetensors")) == shards != []
    live = fit(method(DPO, base), tmp_path, steps=3)
    assert done.watch.losses == pytest.approx(live.watch.losses, abs=1e-5)


def test_the_policy_and_its_start_are_told_apart(base):
    """Samples of an interrupted evaluation are kept by this hash."""
    policy = adapted(base, learned=True)
    reference = AdapterReference()
    reference.build(policy)
    plain = Policy(path=base)
    plain.build()
    assert weights_hash(plain) == weights_hash(reference.model) != weights_hash(policy)


def test_a_view_shares_the_weights_and_its_copy_does_not(base):
    """A strategy or an evaluation that moves one of the two moves both."""
    policy, plain = adapted(base, learned=True), Policy(path=base)
    plain.build()
    view = initial_policy(policy)
    assert view.holder is policy and view.model is policy.model and view.tokenizer is policy.tokenizer
    frozen = view.frozen_copy()
    assert not any(p.requires_grad for p in frozen.parameters()) and any(p.requires_grad for p in policy.parameters())
    assert torch.equal(logps(frozen), logps(plain))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01)
    assert torch.equal(logps(frozen), logps(plain)) and not torch.equal(logps(view), logps(plain))
    view.to(torch.float64)
    assert logps(policy).dtype == logps(view).dtype == torch.float64 and not torch.equal(logps(policy), logps(view))


def test_a_copy_of_an_adapted_policy_is_warned_of(base):
    with pytest.warns(UserWarning, match="AdapterReference, which needs no copy"):
        FrozenReference().build(adapted(base))


# ---- export, merge -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "tied"), TIED)
def test_exports_are_the_trained_policy(kind, tied, tmp_path, capsys):
    path = saved(tiny.policy(tie_word_embeddings=tied, max_position_embeddings=256), tmp_path / "base")
    policy = adapted(path, learned=True, **KINDS[kind])
    run = adapter_run(tmp_path / "run", policy)
    export(run, tmp_path / "adapter")
    files = {f.name for f in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= files
    assert not {"config.json", "model.safetensors"} & files
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), tmp_path / "adapter").eval()
    expected = of_model(policy.model)
    torch.testing.assert_close(of_model(by_peft), expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(of_model(load_model(run)[0]), expected, rtol=0, atol=0)
    capsys.readouterr()
    export(run, tmp_path / "merged", merge=True)
    assert "merging changes log-probs by" in capsys.readouterr().out
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(of_model(whole), expected, rtol=1e-5, atol=1e-3)
    assert not hasattr(whole, "peft_config") and len(AutoTokenizer.from_pretrained(tmp_path / "merged"))


def test_merging_averages_products_not_factors(base, tmp_path):
    policies = [adapted(base, seed, learned=True) for seed in (1, 2)]
    runs = [adapter_run(tmp_path / f"run{i}", policy) for i, policy in enumerate(policies)]
    export(runs[1], tmp_path / "folder")
    merge([runs[0], tmp_path / "folder"], tmp_path / "soup", [0.25, 0.75])
    soup = AutoModelForCausalLM.from_pretrained(tmp_path / "soup").state_dict()
    first, second = (merged(policy.model).state_dict() for policy in policies)
    assert soup.keys() == first.keys()
    for name, x in soup.items():
        torch.testing.assert_close(x, 0.25 * first[name] + 0.75 * second[name], rtol=1e-5, atol=1e-6)


# ---- rounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [AdapterReference, pytest.param(FrozenReference, marks=pytest.mark.slow)])
def test_rounds_of_an_adapter(reference, base, tmp_path):
    """Each round starts at log 2 against the policy that the last one left; checkpoints hold the changed weights."""

    def made():
        return method(DPO, base, LoRA(r=2), reference())

    whole = fit(made(), tmp_path, Rounds(2), steps=6)
    assert [whole.watch.losses[s] for s in (0, 2, 4)] == pytest.approx([math.log(2)] * 3, abs=1e-4)
    assert abs(whole.watch.losses[3] - math.log(2)) > 0.01
    fit(made(), tmp_path, Rounds(2), steps=6, stop_at=5, save_every=3)
    late = fit(made(), tmp_path, Rounds(2), steps=6, ckpt_path=str(tmp_path / "step=3.ckpt"))
    assert late.watch.losses == {step: whole.watch.losses[step] for step in (3, 4, 5)}


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_what_cannot_work_is_refused_in_one_sentence(base, tmp_path):
    full = run_folder(tmp_path / "full", tiny.policy())
    random = tiny.policy()
    scratch = Policy(config=random.config, tokenizer="tiny.tokenizer", adapter=LoRA(r=2))
    scratch.build()
    alone = adapter_run(tmp_path / "alone", scratch)
    other = adapter_run(tmp_path / "other", adapted(base, target_modules=["q_proj"], r=2))
    folder = tmp_path / "folder"
    export(other, folder)
    wide = saved(tiny.policy(hidden_size=64, max_position_embeddings=256), tmp_path / "wide")
    cases = [
        (lambda: adapted(base, target_modules=["query"]), "query"),
        (lambda: adapted(str(folder)), "set policy.path to the model below it"),
        (lambda: adapted(base, path=str(full)), "trained all weights"),
        (lambda: adapted(base, path=str(alone)), "has a base of its own"),
        (lambda: adapted(base, path=str(tmp_path / "nowhere")), "no adapter at"),
        (lambda: adapted(wide, path=str(other)), "another shape"),
        (lambda: Policy(path=base, quantization="nf4"), "policy.adapter"),
        (lambda: AdapterReference().build(tiny.policy()), "set model.reference: FrozenReference"),
        (lambda: export(full, tmp_path / "out", merge=True), "no adapter to --merge"),
        (lambda: export(alone, tmp_path / "out"), "with --merge"),
        (lambda: method(CSFT, base).configure_model(), "modules_to_save"),
    ]
    for case, message in cases:
        with pytest.raises(UserError, match=message) as error:
            case()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    export(alone, tmp_path / "out", merge=True)
    merged_alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(probe(merged_alone), probe(scratch.model), rtol=1e-5, atol=1e-5)


def test_control_tokens_train_with_embeddings_of_their_own(base, tmp_path):
    made = method(CSFT, base, LoRA(r=2, modules_to_save=["embed_tokens"]))
    fit(made, tmp_path, steps=2, save_every=2)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (tmp_path / "step=2.ckpt").rename(run / "checkpoints" / "step=2.ckpt")
    model, tokenizer = load_model(run)
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    torch.testing.assert_close(of_model(model), of_model(made.policy.model), rtol=0, atol=0)


def test_a_model_from_scratch_keeps_all_its_weights(tmp_path):
    """There is nothing that it could be read from again."""
    policy = Policy(config=tiny.policy().config, tokenizer="tiny.tokenizer", adapter=LoRA(r=2))
    policy.build()
    assert any(owner(name) is None for name in policy.state_dict())
    assert json.loads(policy.files()["adapter_config.json"])["r"] == 2


@pytest.mark.parametrize("kind", ["plain", "whole head", "4 bits", "start"])
def test_checkpoints_hold_what_cannot_be_read_again(kind, base, tmp_path):
    """The trained adapter; once the weights below have changed, these too, and an adapter alone is not enough."""
    options = {"quantization": "nf4"} if kind == "4 bits" else KINDS.get(kind, {})
    if kind == "start":
        options = {"path": str(adapter_run(tmp_path / "sft", adapted(base, learned=True)))}
    policy, fresh = (adapted(base, seed=seed, **options) for seed in (0, 1))
    with torch.no_grad():
        for parameter in (p for p in policy.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    policies, others = torch.nn.ModuleDict({"ours": policy}), torch.nn.ModuleDict({"ours": fresh})
    adapter = policies.state_dict()
    assert adapter and all(owner(name) == "default" for name in adapter)
    others.load_state_dict(adapter)
    assert torch.equal(logps(fresh), logps(policy))
    if kind == "4 bits":  # `Rounds` refuses them
        return
    policy.forget_base()
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.add_(0.1)
    whole = policies.state_dict()
    assert {owner(name) for name in whole} == {"default", None}
    others.load_state_dict(whole)
    assert torch.equal(logps(fresh), logps(policy)) and others.state_dict().keys() == whole.keys()
    with pytest.raises(RuntimeError, match="Missing key"):
        others.load_state_dict(adapter)


# ---- the command line ----------------------------------------------------------------------------------------------

CONFIG = """
model:
  class_path: DPO
  init_args:
    policy: {{path: {stories}, adapter: {{class_path: LoRA, init_args: {{r: 4, target_modules: [q_proj, up_proj]}}}}}}
    reference: AdapterReference
    optimizer: {{class_path: bitsandbytes.optim.{optimizer}, init_args: {{lr: 1.0e-3, min_8bit_size: 16}}}}
data:
  sources: [{{name: hh, path: Anthropic/hh-rlhf, local: {data}/hh, limit: 60}}]
  validation: 8
  max_length: 200
  overlong: [truncate_prompt_left, truncate_response]
  pairs_per_step: 8
trainer: {{max_steps: 6, accelerator: cpu, enable_progress_bar: false}}
checkpoint: {{every_n_train_steps: 2}}
"""


@pytest.mark.parametrize(
    "optimizer",
    [pytest.param("AdamW8bit", marks=pytest.mark.slow), pytest.param("PagedAdamW8bit", marks=pytest.mark.nightly)],
)
def test_the_command_line(optimizer, stories260k, shared, upo_fit, tmp_path, capsys):
    """With an optimizer of 8 bits: killed and resumed is uninterrupted, and all commands read the folder."""
    config = CONFIG.format(stories=stories260k, data=shared / "data", optimizer=optimizer)
    (tmp_path / "lora.yaml").write_text(config)
    args = ("--config", "lora.yaml", "--trainer.default_root_dir")
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert upo_fit(*args, "whole").code == 0
    killed = upo_fit(*args, "killed", kill_when=lambda: any((folder / "checkpoints").glob("step=2*.ckpt")))
    assert killed.code == -signal.SIGKILL, killed.text
    assert upo_fit(*args, "killed", "--ckpt_path", "last").code == 0
    assert losses(folder) == losses(whole)

    file = max((folder / "checkpoints").glob("*.ckpt"))
    content = torch.load(file, weights_only=True)
    assert all(owner(name) == "default" for name in content["state_dict"])
    moments = tree_leaves(content["optimizer_states"][0]["state"])
    assert any(x.dtype == torch.uint8 for x in moments if isinstance(x, torch.Tensor))
    every = sum(x.numel() for x in load_model(stories260k)[0].parameters())
    assert sum(x.numel() for x in content["state_dict"].values()) < every / 10

    export(folder, tmp_path / "adapter")
    export(folder, tmp_path / "merged", merge=True)
    live = probe(load_model(folder)[0])
    for name in ("adapter", "merged"):
        torch.testing.assert_close(probe(load_model(tmp_path / name)[0]), live, rtol=1e-4, atol=1e-4)
    figures = evaluate(str(folder), out=tmp_path / "evaluated", prompts=4, max_new_tokens=8)
    assert figures["policy/kl"] != 0 and "rewards/accuracies" in " ".join(figures)
    for name in ("killed", "adapter"):
        options = {"self_prompts": 4, "responses": 2, "max_new_tokens": 8}
        generate(str(tmp_path / name), Sentiment(), tmp_path / f"{name}.jsonl", **options)
    assert (tmp_path / "killed.jsonl").read_text() == (tmp_path / "adapter.jsonl").read_text()


def test_the_reference_reads_the_head_below_the_adapter(base):
    policy = adapted(base, learned=True, target_modules=["v_proj", "lm_head"])
    reference = AdapterReference()
    reference.build(policy)
    plain = Policy(path=base)
    plain.build()
    hidden = torch.randn(3, policy.hidden_size)
    expected = plain.linear_head().logits(hidden)
    assert torch.equal(reference.linear_head().logits(hidden), expected)
    assert (policy.linear_head().logits(hidden) - expected).abs().max() > 0.1


# ---- optimizers of few bits ----------------------------------------------------------------------------------------


def test_optimizers_of_bitsandbytes_on_shards_are_refused():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        shard = torch.nn.Parameter(distribute_tensor(torch.zeros(4, 4), mesh))
        plain = torch.nn.Parameter(torch.zeros(4, 4))
        checked(bitsandbytes.optim.AdamW8bit([plain]))
        checked(torch.optim.AdamW([shard]))
        with pytest.raises(UserError, match=r"torchao\.optim\.AdamW8bit"):
            checked(bitsandbytes.optim.PagedAdamW8bit([{"params": [plain]}, {"params": [shard]}]))
    finally:
        dist.destroy_process_group()


# ---- adapters of others --------------------------------------------------------------------------------------------

OTHERS = {
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "repeated layers": {"layer_replication": [[0, 2], [1, 2]]},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "rank pattern": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "DoRA and rsLoRA": {"use_dora": True, "use_rslora": True},
    "saved head": {"modules_to_save": ["lm_head"]},
}


def of_peft(base: str, folder: Path) -> torch.Tensor:
    """Log-probs of the adapter as peft itself loads it."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()
    return of_model(model)


@pytest.fixture(scope="module", params=OTHERS)
def foreign(request, base, tmp_path_factory) -> Path:
    """An adapter that peft made, trained a little and saved."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", **OTHERS[request.param])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    model.save_pretrained(folder := tmp_path_factory.mktemp("foreign"))
    return folder


def test_adapters_of_others_are_what_peft_loads(foreign, base, tmp_path):
    """Policy and reference, the run's checkpoint and its export: some kinds change the weights below them once."""
    expected = of_peft(base, foreign)
    policy = adapted(base, path=str(foreign))
    reference = AdapterReference()
    reference.build(policy)
    for layout in ("packed", "padded"):
        torch.testing.assert_close(logps(policy, layout), expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(reference.logps(tiny.arrange(UNITS, layout)), expected, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        for parameter in (p for p in policy.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    trained = logps(policy)
    assert (trained - expected).abs().max() > 0.01
    torch.testing.assert_close(reference.logps(tiny.arrange(UNITS)), expected, rtol=1e-5, atol=1e-4)
    run = adapter_run(tmp_path / "run", policy)
    torch.testing.assert_close(of_model(load_model(run)[0]), trained, rtol=1e-5, atol=1e-4)
    export(run, tmp_path / "adapter")
    torch.testing.assert_close(of_peft(base, tmp_path / "adapter"), trained, rtol=1e-5, atol=1e-4)
    if policy.model.peft_config["default"].layer_replication:
        with pytest.raises(UserError, match=r"repeats layers, .* cannot be merged"):
            export(run, tmp_path / "merged", merge=True)
    else:
        export(run, tmp_path / "merged", merge=True)
        torch.testing.assert_close(of_model(load_model(tmp_path / "merged")[0]), trained, rtol=1e-4, atol=1e-3)


def test_a_kind_that_changes_its_base_at_every_load_is_refused(base, tmp_path, monkeypatch):
    """Whatever peft will think of next."""
    monkeypatch.setattr(lora_module, "for_changed_base", lambda config: config)
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="pissa")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"log-probs change by .* when the adapter is put on twice"):
        adapted(base, path=str(tmp_path))


def test_random_projections_are_the_same_at_every_load(base, tmp_path):
    """PiSSA's fast variant draws them: what it leaves of the base must not depend on the random state of a resume."""
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="pissa_niter_1")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path)
    first, state = adapted(base, seed=1, path=str(tmp_path)), torch.get_rng_state()
    second = adapted(base, seed=2, path=str(tmp_path))
    assert torch.equal(logps(first), logps(second)) and not torch.equal(torch.get_rng_state(), state)
