"""Adapters inside of a model (`LoRA` makes them): which one counts, and what a checkpoint holds of them.

An adapter that is trained is called "default" in the model. One that training starts from is there a second time, as
"start", and stays as it was: it is what the policy is measured against. Checkpoints hold the first one alone.
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
"""What an adapter's tensors have in their names: kind and name of the adapter."""


def inject(model: nn.Module, config: Any, name: str) -> None:
    """Adds an adapter under a name, with its first values, and freezes what it leaves alone.

    A and B are in float32 at least: small steps would vanish in bfloat16.
    """
    from peft import inject_adapter_in_model

    if getattr(config, "megatron_config", None):
        raise UserError(MEGATRON)
    try:
        inject_adapter_in_model(copy.deepcopy(config), model, name)
    except ValueError as error:
        raise UserError(f"policy.adapter: {' '.join(str(error).split())[:300]}") from None
    for parameter in (p for n, p in model.named_parameters() if owner(n) == name and ".lora_" in n):
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def refuse_megatron(folder: Path) -> None:
    """Raises a `UserError` where a local adapter is for Megatron's layers, before transformers hands it to peft."""
    if (file := folder / "adapter_config.json").is_file():
        content = read_json(file)
        if not isinstance(content, dict) or content.get("megatron_config"):
            raise UserError(f"{file}: {MEGATRON}")


def owner(name: str) -> str | None:
    """Which adapter a tensor of a model belongs to, by its name; None for the model's own."""
    found = PART.search(name)
    return found and found[2]


# ---- which adapter counts ------------------------------------------------------------------------------------------


def parts(model: nn.Module) -> list[Any]:
    """The modules that an adapter has put in."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def activate(model: nn.Module, name: str | None) -> None:
    """Lets one adapter count, or none; unlike peft's own functions this leaves alone which parameters learn."""
    for module in parts(model):
        module._disable_adapters = name is None
        if name is not None:
            module._active_adapter = name


@contextmanager
def only(model: nn.Module, name: str | None) -> Iterator[None]:
    """Inside, this adapter counts, or none; afterwards the trained one."""
    activate(model, name)
    try:
        yield
    finally:
        activate(model, TRAINED)


def below(model: nn.Module, name: str | None) -> dict[str, Tensor]:
    """The tensors of the model below its adapters, by the names that they have without any, and of one adapter."""
    state = {n: x for n, x in model.state_dict().items() if owner(n) in (None, name)}
    return {n.replace(".base_layer.", ".").replace(".original_module.", "."): x for n, x in state.items()}


# ---- what a checkpoint holds ---------------------------------------------------------------------------------------


class SavesAdapterOnly(nn.Module):
    """Base of a policy: where it trains an adapter, checkpoints hold that alone, as long as the rest can be read again.

    An adapter to start from can, and so can the weights below while `base_sha256` knows them.
    """

    adapter: Any = None
    """Settings of the adapter that is trained, if any."""
    base_sha256: str | None = None
    """Hash of the weights below the adapter, where they are those of a model on disk."""

    def forget_base(self) -> None:
        """Called when the weights below the adapter have changed: checkpoints hold them from now on."""
        self.base_sha256 = None

    def state_dict(self, *, prefix: str = "", **options: Any) -> dict[str, Tensor]:
        state = super().state_dict(prefix=prefix, **options)
        if self.adapter is not None:
            save_adapter_only(state, prefix, base=self.base_sha256 is None)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *options: Any) -> None:
        """torch calls it before it fills the layers: what a checkpoint left out stays as it is."""
        if self.adapter is not None:
            if any(n.startswith(prefix) and owner(n) is None for n in state_dict):
                self.forget_base()
            left_out = (START,) if self.base_sha256 is None else (START, None)
            tensors = {id(x) for x in (*self.parameters(), *self.buffers())}  # others are 4-bit layers' constants
            for name, x in super().state_dict(prefix=prefix, keep_vars=True).items():
                if owner(name) in left_out and id(x) in tensors:
                    state_dict.setdefault(name, x)
        super()._load_from_state_dict(state_dict, prefix, *options)


def save_adapter_only(state: dict[str, Tensor], prefix: str, base: bool) -> None:
    """Takes out of a state dict what can be read again: the adapter to start from and, without `base`, what is below.

    Args:
        state: of a module that holds the policy.
        prefix: of the policy's names in there.
        base: whether the weights below the adapter stay in.
    """
    keep = (TRAINED, None) if base else (TRAINED,)
    for name in [n for n in state if n.startswith(prefix) and owner(n) not in keep]:
        del state[name]
