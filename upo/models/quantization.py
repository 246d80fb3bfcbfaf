"""QLoRA: the weights below an adapter in 4 bits (Dettmers et al., 2023, https://arxiv.org/abs/2305.14314)."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from upo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def reading(kind: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments with which `from_pretrained` reads weights in 4 bits: NF4 with doubly quantised constants."""
    if kind is None:
        return {}
    if find_spec("bitsandbytes") is None:
        raise UserError("policy.quantization needs bitsandbytes, which runs on Linux: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    options = {"bnb_4bit_quant_type": kind, "bnb_4bit_compute_dtype": dtype, "bnb_4bit_use_double_quant": True}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **options)}


def replace_layers(model: "PreTrainedModel", config: Any) -> None:
    """Replaces the layers of a model on the meta device by those that it has when read in 4 bits."""
    from transformers.quantizers import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    quantizer.preprocess_model(model, device_map=None)
    quantizer.postprocess_model(model)
    keep_layout(model)


def keep_layout(model: nn.Module) -> None:
    """Keeps 4-bit weights in the memory order in which they were read, on every CPU; to be called for each model read.

    On CPUs with avx512_bf16 bitsandbytes' layers would rewrite their weights in the first forward pass outside
    training: in an order that does not work for narrow layers and shards, with constants in bfloat16, and without a
    backward pass afterwards.
    """
    for layer in filter(is_quantized, model.modules()):
        layer.support_avx512bf16_for_cpu = False


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is one of bitsandbytes' 4-bit layers."""
    return hasattr(module, "quant_state")


def receive(layer: Any, device: torch.device) -> None:
    """Copies rank 0's 4-bit weights to all ranks, to be sharded then; their constants (1/64 of them) stay whole."""
    from bitsandbytes.functional import QuantState

    weight = layer.weight
    is_sender = dist.get_rank() == 0
    message: list[Any] = [None]
    if is_sender:
        constants = {name: x.cpu() for name, x in weight.quant_state.as_dict(packed=True).items()}
        message = [(weight.shape, weight.dtype, constants)]
    dist.broadcast_object_list(message, device=device)
    shape, dtype, constants = message[0]
    values = torch.empty(shape, dtype=dtype, device=device)
    if is_sender:
        values.copy_(weight.detach())
    dist.broadcast(values, 0)
    layer.weight = nn.Parameter(values, requires_grad=False)
    layer.quant_state = QuantState.from_dict(constants, device)
