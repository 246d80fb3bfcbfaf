"""Adapters on disk: in peft's format and in our checkpoints."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from upo.errors import UserError, hub_errors
from upo.models import quantization
from upo.models.adapters import CONFIG, TRAINED, for_changed_base, inject, owner, refuse_megatron

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


WEIGHTS = "adapter_model.safetensors"
"""Name of the file in which peft stores an adapter's tensors."""


@frozen
class StoredAdapter:
    """An adapter's settings and tensors."""

    config: Any
    """peft's `LoraConfig`."""
    weights: "Mapping[str, Tensor]"
    """By the names that peft gives them on disk."""
    where: str
    """Path or hub name, for errors."""

    @classmethod
    def at(cls, path: str) -> "StoredAdapter":
        """Reads an adapter: from a folder in peft's format, a hub name, or a run or checkpoint of ours.

        Raises:
            UserError: no adapter there, or one whose model exists in its checkpoint only.
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
                raise UserError(f"{path} is not a LoRA adapter ({config.peft_type}); other kinds are not supported")
            return cls(config, load_peft_weights(path, device="cpu"), path)

    def into(self, model: "PreTrainedModel", name: str) -> None:
        """Copies the tensors into the adapter that `model` has under `name`.

        Raises:
            UserError: names or shapes do not match.
        """
        state = model.state_dict()
        model_names = {in_peft(n, name): n for n in state if owner(n) == name}
        if unmatched := sorted(model_names.keys() ^ self.weights.keys()):
            raise UserError(f"{self.where} does not fit the model: {unmatched[0]} is in only one of them")
        for peft_name, model_name in model_names.items():
            if self.weights[peft_name].shape != state[model_name].shape:
                raise UserError(f"{self.where} does not fit the model: {peft_name} has another shape")
        model.load_state_dict({model_names[n]: x for n, x in self.weights.items()}, strict=False)


def in_peft(name: str, adapter: str = TRAINED) -> str:
    """The name that peft gives a tensor on disk.

    Args:
        name: of the tensor in the model's state dict.
        adapter: name of the adapter in the model.
    """
    name = re.sub(rf"\.modules_to_save\.{adapter}(?=\.)", "", name)
    name = re.sub(rf"\.lora_magnitude_vector\.{adapter}\.weight$", ".lora_magnitude_vector", name)
    return "base_model.model." + re.sub(rf"(\.lora_\w+)\.{adapter}(?=\.|$)", r"\1", name)


# ---- our checkpoints -----------------------------------------------------------------------------------------------


def policy_weights(content: dict[str, Any]) -> "dict[str, Tensor]":
    """The policy's tensors in a checkpoint, by their names in the model."""
    from upo.models.checkpoint_files import POLICY

    return {k.removeprefix(POLICY): v for k, v in content["state_dict"].items() if k.startswith(POLICY)}


def is_whole(content: dict[str, Any]) -> bool:
    """Whether a checkpoint holds more of the policy than an adapter."""
    return any(owner(name) is None for name in policy_weights(content))


def trained(content: dict[str, Any]) -> "dict[str, Tensor]":
    """The adapter's tensors in a checkpoint, by the names that peft gives them on disk."""
    return {in_peft(name): x for name, x in policy_weights(content).items() if owner(name) == TRAINED}


def with_adapter(content: dict[str, Any], folder: str, rows: int, exact: bool = False) -> "PreTrainedModel":
    """The model of an adapter run's checkpoint, with its adapter active.

    Weights that the checkpoint does not hold are read from the path of the model that training started from.

    Args:
        folder: the checkpoint's configuration, as a Hugging Face folder.
        rows: number of tokens in the tokenizer; the model gets as many embeddings.
        exact: whether to dequantize 4-bit weights.

    Raises:
        UserError: no model at that path, or one with other weights.
    """
    from peft import PeftConfig
    from transformers import AutoConfig, AutoModelForCausalLM

    from upo.models.head import grow
    from upo.models.loading import BASE, base_hash, check_base, check_whole

    adapter, config = PeftConfig.from_pretrained(folder), AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if is_whole(content):
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype, trust_remote_code=False)
        inject(model, for_changed_base(adapter), TRAINED)
        model.load_state_dict(policy_weights(content))
        return model
    base, options = adapter.base_model_name_or_path, {}
    if (quantization_config := getattr(config, "quantization_config", None)) is not None:
        options["quantization_config"] = quantization_config
    refuse_megatron(Path(str(base)))
    with hub_errors(base, "model below the adapter"):
        model, info = AutoModelForCausalLM.from_pretrained(
            base, dtype=config.dtype, trust_remote_code=False, output_loading_info=True, **options
        )
    check_whole(model, info, base)
    quantization.keep_layout(model)
    check_base(content, content.get(BASE) and base_hash(model), base)
    if exact and options:
        model = model.dequantize()
    grow(model, rows)
    inject(model, adapter, TRAINED)
    StoredAdapter(adapter, trained(content), "the checkpoint").into(model, TRAINED)
    return model


def write_adapter(content: dict[str, Any], folder: Path) -> None:
    """Writes an adapter run's adapter and tokenizer as a folder in peft's format, without the model below the adapter.

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
        if name not in ("config.json", "generation_config.json"):  # with these the folder would be taken for a model
            (folder / name).write_bytes(data)
