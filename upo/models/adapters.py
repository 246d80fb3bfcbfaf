"""Adapters inside of a model (`LoRA` makes them): which one counts, and what a checkpoint holds of them.

An adapter that is trained is called "default" in the model. One that training starts from is there a second time, as
"start", and stays as it was: it is what the policy is measured against. Checkpoints hold the first one alone.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from upo.errors import UserError

if TYPE_CHECKING:
    from upo.models.policy import Policy

TRAINED, START = "default", "start"

CONFIG = "adapter_config.json"
"""peft's description of an adapter, in adapter folders and in our checkpoints."""

PART = re.compile(r"\.(lora_\w+|modules_to_save)\.(\w+)(?=\.|$)")
"""What an adapter's tensors have in their names: kind and name of the adapter."""


def inject(model: nn.Module, config: Any, name: str) -> None:
    """Adds an adapter under a name, with its first values, and freezes what it leaves alone.

    A and B are in float32 at least: small steps would vanish in bfloat16.
    """
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(copy.deepcopy(config), model, name)
    except ValueError as error:
        raise UserError(f"policy.adapter: {' '.join(str(error).split())[:300]}") from None
    for parameter in (p for n, p in model.named_parameters() if owner(n) == name and ".lora_" in n):
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


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


def keep_apart(policy: "Policy") -> None:
    """The policy's state dict holds the trained adapter alone, wherever the rest can be read again.

    `rebased` says that the weights below are no longer those at its path.
    """
    policy.rebased = False
    policy.register_state_dict_post_hook(_leave_out)
    policy.register_load_state_dict_pre_hook(_look)
    policy.register_load_state_dict_post_hook(_forgive)


def is_whole(policy: "Policy") -> bool:
    """Whether checkpoints need all weights: no model to start from again, or one that `Rounds` has changed."""
    return policy.path is None or policy.rebased


def _leave_out(policy: Any, state_dict: dict[str, Tensor], prefix: str, _: Any) -> None:
    keep = (TRAINED, None) if is_whole(policy) else (TRAINED,)
    for name in [n for n in state_dict if n.startswith(prefix) and owner(n) not in keep]:
        del state_dict[name]


def _look(policy: Any, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    policy.rebased = any(n.startswith(prefix) and owner(n) is None for n in state_dict)
    policy.prefix = prefix


def _forgive(policy: Any, incompatible: Any) -> None:
    may_lack = (START,) if is_whole(policy) else (START, None)
    missing = incompatible.missing_keys
    missing[:] = [n for n in missing if not n.startswith(policy.prefix) or owner(n) not in may_lack]
