"""Adapters on disk, in peft's format and in checkpoints; models that they are merged into."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from upo import four_bits
from upo.adapters import CONFIG, TRAINED, inject, owner, parts
from upo.errors import UserError, hub_errors

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


WEIGHTS = "adapter_model.safetensors"
"""Where peft looks for an adapter's tensors."""


@frozen
class StoredAdapter:
    """An adapter's settings and tensors, by peft's names."""

    config: Any
    weights: "Mapping[str, Tensor]"
    where: str

    @classmethod
    def at(cls, path: str) -> "StoredAdapter":
        """The adapter in a folder of peft's, under a hub name, or of a run of ours.

        Raises:
            UserError: there is none, or one of a model that only its checkpoint has.
        """
        from peft import LoraConfig, PeftConfig
        from peft.utils import load_peft_weights

        from upo.checkpoint import find_checkpoint, policy_folder, read_checkpoint

        if (file := find_checkpoint(Path(path))) is not None:
            content = read_checkpoint(file)
            if CONFIG not in content["policy_files"]:
                raise UserError(f"{path} trained all weights, not an adapter; export it and set policy.path instead")
            if is_whole(content):
                raise UserError(f"the adapter of {path} has a base of its own; export it with --merge, set policy.path")
            with policy_folder(content) as folder:
                return cls(PeftConfig.from_pretrained(folder), trained(content), path)
        with hub_errors(path, "adapter"):
            config = PeftConfig.from_pretrained(path)
            if not isinstance(config, LoraConfig):
                raise UserError(f"{path} is no LoRA adapter ({config.peft_type}), others are not supported")
            return cls(config, load_peft_weights(path, device="cpu"), path)

    def into(self, model: "PreTrainedModel", name: str) -> None:
        """Fills an adapter of a model, which has it under `name`."""
        own = model.state_dict()
        places = {in_peft(n, name): n for n in own if owner(n) == name}
        if other := sorted(places.keys() ^ self.weights.keys()):
            raise UserError(f"{self.where} does not fit the model: {other[0]} is in only one of them")
        for key, place in places.items():
            if self.weights[key].shape != own[place].shape:
                raise UserError(f"{self.where} does not fit the model: {key} has another shape")
        model.load_state_dict({places[key]: x for key, x in self.weights.items()}, strict=False)


def in_peft(name: str, adapter: str = TRAINED) -> str:
    """What peft calls a tensor of an adapter on disk."""
    name = re.sub(rf"\.modules_to_save\.{adapter}(?=\.)", "", name)
    name = re.sub(rf"\.lora_magnitude_vector\.{adapter}\.weight$", ".lora_magnitude_vector", name)
    return "base_model.model." + re.sub(rf"(\.lora_\w+)\.{adapter}(?=\.|$)", r"\1", name)


# ---- our checkpoints -----------------------------------------------------------------------------------------------


def policy_weights(content: dict[str, Any]) -> "dict[str, Tensor]":
    """The policy's tensors in a checkpoint, by the model's own names."""
    from upo.checkpoint import POLICY

    return {k.removeprefix(POLICY): v for k, v in content["state_dict"].items() if k.startswith(POLICY)}


def is_whole(content: dict[str, Any]) -> bool:
    """Whether a checkpoint holds more of the policy than an adapter."""
    return any(owner(name) is None for name in policy_weights(content))


def trained(content: dict[str, Any]) -> "dict[str, Tensor]":
    """The adapter's tensors in a checkpoint, by peft's names."""
    return {in_peft(name): x for name, x in policy_weights(content).items() if owner(name) == TRAINED}


def with_adapter(content: dict[str, Any], folder: str, rows: int, exact: bool = False) -> "PreTrainedModel":
    """The model of an adapter run's checkpoint with its adapter on; what is not in there is read where it came from.

    Args:
        folder: the checkpoint's configuration, as a Hugging Face folder.
        rows: how many embeddings the tokenizer needs.
        exact: 4-bit weights as the numbers that they stand for.

    Raises:
        UserError: the model that the adapter belongs to is not where it was.
    """
    from peft import PeftConfig
    from transformers import AutoConfig, AutoModelForCausalLM

    from upo.head import grow
    from upo.loading import BASE, base_hash, check_base

    adapter, config = PeftConfig.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    if is_whole(content):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
        inject(model, adapter, TRAINED)
        model.load_state_dict(policy_weights(content))
        return model
    base, options = adapter.base_model_name_or_path, {}
    if (quantization := getattr(config, "quantization_config", None)) is not None:
        options["quantization_config"] = quantization
    with hub_errors(base, "model below the adapter"):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=config.dtype, **options)
    four_bits.keep_layout(model)
    check_base(content, content.get(BASE) and base_hash(model), base)
    if exact and options:
        model = model.dequantize()
    grow(model, rows)
    inject(model, adapter, TRAINED)
    StoredAdapter(adapter, trained(content), "the checkpoint").into(model, TRAINED)
    return model


def write_adapter(content: dict[str, Any], folder: Path) -> None:
    """Writes an adapter run's adapter and tokenizer as a folder that peft reads; the model below it is not needed.

    Raises:
        UserError: the model below it exists in the checkpoint only.
    """
    from safetensors.torch import save_file

    if is_whole(content):
        raise UserError("the model below this adapter is in the checkpoint only; export both as one model with --merge")
    save_file(
        {name: x.contiguous() for name, x in trained(content).items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    for name, data in content["policy_files"].items():
        if name not in ("config.json", "generation_config.json"):  # these make it look like a model
            (folder / name).write_bytes(data)


# ---- merging -------------------------------------------------------------------------------------------------------


def merged(model: "PreTrainedModel") -> "PreTrainedModel":
    """The same model, changed in place: its adapter is part of the weights, and nothing of peft's is left.

    Embeddings and output head that share their weights get apart where an adapter has changed one of them.
    """
    added = set(parts(model))
    changed = {name: part for name, part in model.named_modules() if part in added}
    if added & {model.get_input_embeddings(), model.get_output_embeddings()}:
        untie(model)
    for name, part in changed.items():
        if hasattr(part, "original_module"):
            whole = part.modules_to_save[TRAINED]
        else:
            part.merge(safe_merge=True, adapter_names=[TRAINED])
            whole = part.get_base_layer()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, whole)
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model


def untie(model: "PreTrainedModel") -> None:
    """Gives the output head weights of its own."""
    from torch import nn

    head = model.get_output_embeddings()
    inner = head.get_base_layer() if hasattr(head, "get_base_layer") else getattr(head, "original_module", head)
    inner.weight = nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def probe(model: "PreTrainedModel", tokens: int = 64) -> "Tensor":
    """Log-probs of random tokens [tokens - 1], to tell how far two models are apart."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None].to(model.device))[:, 0].cpu()


def merged_from(content: dict[str, Any], file: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer of an adapter run's checkpoint, merged; prints how far log-probs are from the run's own."""
    from upo.checkpoint import model_from

    model, tokenizer = model_from(content, file)
    before = probe(model)
    if getattr(model.config, "quantization_config", None) is not None:
        model, tokenizer = model_from(content, file, exact=True)
    gap = (probe(merged(model)) - before).abs()
    print(f"merging moves log-probs by {gap.mean():.2g} nats a token, at most {gap.max():.2g}")
    return model, tokenizer
