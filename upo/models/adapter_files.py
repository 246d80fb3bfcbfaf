"""Adapters on disk, in peft's format and in checkpoints; models that they are merged into."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from upo.errors import UserError, hub_errors
from upo.models import quantization
from upo.models.adapters import CONFIG, TRAINED, inject, owner, refuse_megatron

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


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

        from upo.models.checkpoint_files import find_checkpoint, policy_folder, read_checkpoint

        if (file := find_checkpoint(Path(path))) is not None:
            content = read_checkpoint(file)
            if CONFIG not in content["policy_files"]:
                raise UserError(f"{path} trained all weights, not an adapter; export it and set policy.path instead")
            if is_whole(content):
                raise UserError(f"the adapter of {path} has a base of its own; export it with --merge, set policy.path")
            with policy_folder(content) as folder, hub_errors(path, "adapter"):
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
    from upo.models.checkpoint_files import POLICY

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

    from upo.models.head import grow
    from upo.models.loading import BASE, base_hash, check_base

    adapter, config = PeftConfig.from_pretrained(folder), AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if is_whole(content):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype, trust_remote_code=False)
        inject(model, adapter, TRAINED)
        model.load_state_dict(policy_weights(content))
        return model
    base, options = adapter.base_model_name_or_path, {}
    if (in_bits := getattr(config, "quantization_config", None)) is not None:
        options["quantization_config"] = in_bits
    refuse_megatron(Path(str(base)))
    with hub_errors(base, "model below the adapter"):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=config.dtype, trust_remote_code=False, **options)
    quantization.keep_layout(model)
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
