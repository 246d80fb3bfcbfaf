"""Adapters inside a model (`LoRA` makes them): which one is active, and what a checkpoint holds of them.

The adapter that is trained is named "default" in the model. If training starts from an adapter, an unchanged copy of it
is named "start" and serves as the reference. Checkpoints hold "default" only.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upo.errors import UserError
from upo.runtime.atomic_files import read_json

TRAINED, START = "default", "start"

CONFIG = "adapter_config.json"
"""peft's description of an adapter, in adapter folders and in our checkpoints."""

MEGATRON = "adapters for Megatron's layers are not supported: peft would import whatever module their file names"

PART = re.compile(r"\.(lora_\w+|modules_to_save)\.(\w+)(?=\.|$)")
"""The part of a tensor's name that says which adapter it belongs to: kind of tensor, name of the adapter."""


def inject(model: nn.Module, config: Any, name: str) -> None:
    """Adds a newly initialised adapter to a model under a name, and freezes all parameters that it does not train.

    A and B are in float32 at least: in bfloat16 small updates would be rounded away.

    Args:
        config: peft's `LoraConfig`.
    """
    from peft import inject_adapter_in_model

    if getattr(config, "megatron_config", None):
        raise UserError(MEGATRON)
    random = "_niter_" in str(config.init_lora_weights)  # PiSSA by random projections: the same ones at every load
    try:
        with torch.random.fork_rng(devices=[], enabled=random):
            if random:
                torch.manual_seed(0)
            inject_adapter_in_model(copy.deepcopy(config), model, name)
    except (ValueError, TypeError) as error:  # the second from initialisations that do not know the weights' dtype
        raise UserError(f"policy.adapter: {' '.join(str(error).split())[:300]}") from None
    for parameter in (p for n, p in model.named_parameters() if owner(n) == name and ".lora_" in n):
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def refuse_megatron(folder: Path) -> None:
    """Raises a `UserError` where a local adapter is for Megatron's layers, before transformers hands it to peft."""
    if (file := folder / "adapter_config.json").is_file():
        content = read_json(file)
        if not isinstance(content, dict) or content.get("megatron_config"):
            raise UserError(f"{file}: {MEGATRON}")


def for_changed_base(config: Any) -> Any:
    """The same adapter's config for a model that was changed for it before.

    Some adapters change the weights or the layers below them when they are initialised (PiSSA and OLoRA subtract what A
    and B begin with, others repeat layers), which must happen once.
    """
    config = copy.deepcopy(config)
    config.init_lora_weights, config.layer_replication = True, None
    return config


def owner(name: str) -> str | None:
    """The name of the adapter that a tensor belongs to, from the tensor's name; None for the model's own tensors."""
    match = PART.search(name)
    return match and match[2]


# ---- which adapter is active ---------------------------------------------------------------------------------------


def parts(model: nn.Module) -> list[Any]:
    """The modules that peft has inserted for adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def activate(model: nn.Module, name: str | None) -> None:
    """Makes one adapter active, or none; unlike peft's own functions, does not change `requires_grad`."""
    for module in parts(model):
        module._disable_adapters = name is None
        if name is not None:
            module._active_adapter = name


@contextmanager
def only(model: nn.Module, name: str | None) -> Iterator[None]:
    """Context in which this adapter is active, or none; afterwards the trained one is."""
    activate(model, name)
    try:
        yield
    finally:
        activate(model, TRAINED)


def below(model: nn.Module, name: str | None) -> dict[str, Tensor]:
    """The tensors of the model below its adapters, by their names in a model without adapters, and of one adapter."""
    state = {n: x for n, x in model.state_dict().items() if owner(n) in (None, name)}
    return {n.replace(".base_layer.", ".").replace(".original_module.", "."): x for n, x in state.items()}


# ---- what a checkpoint holds ---------------------------------------------------------------------------------------


class SavesAdapterOnly(nn.Module):
    """Base of a policy: if it trains an adapter, checkpoints hold the adapter and nothing that can be read again.

    The adapter that training starts from can be read again, and so can the weights below the adapter as long as
    `base_sha256` is set.
    """

    adapter: Any = None
    """Settings of the adapter that is trained; None trains all weights."""
    base_sha256: str | None = None
    """Hash of the weights below the adapter, if they are those of a model on disk; else None."""

    def forget_base(self) -> None:
        """To be called when the weights below the adapter have changed: later checkpoints hold them."""
        self.base_sha256 = None

    def state_dict(self, *, prefix: str = "", **options: Any) -> dict[str, Tensor]:
        state = super().state_dict(prefix=prefix, **options)
        if self.adapter is not None:
            save_adapter_only(state, prefix, base=self.base_sha256 is None)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *options: Any) -> None:
        """Called by torch before it loads the layers; tensors that the checkpoint left out keep their values."""
        if self.adapter is not None:
            if any(n.startswith(prefix) and owner(n) is None for n in state_dict):
                self.forget_base()
            unsaved_owners = (START,) if self.base_sha256 is None else (START, None)
            tensors = {id(x) for x in (*self.parameters(), *self.buffers())}  # others are 4-bit layers' constants
            for name, x in super().state_dict(prefix=prefix, keep_vars=True).items():
                if owner(name) in unsaved_owners and id(x) in tensors:
                    state_dict.setdefault(name, x)
        super()._load_from_state_dict(state_dict, prefix, *options)


def save_adapter_only(state: dict[str, Tensor], prefix: str, base: bool) -> None:
    """Deletes from a state dict what can be read again: the adapter "start" and, without `base`, the weights below.

    Args:
        state: state dict of a module that holds the policy; changed in place.
        prefix: of the policy's names in it.
        base: whether the weights below the adapter are kept.
    """
    owners = (TRAINED, None) if base else (TRAINED,)
    for name in [n for n in state if n.startswith(prefix) and owner(n) not in owners]:
        del state[name]
