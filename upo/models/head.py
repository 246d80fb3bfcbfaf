"""Parts of a Hugging Face model: its output head and what happens to its logits, embeddings for new tokens, layers."""

from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor, nn

from upo.errors import UserError
from upo.ops.linear_head import LinearHead
from upo.runtime.collectives import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
"""Config fields by which models multiply or divide their logits (Cohere; Granite and others; Falcon-H1; Muse)."""


@torch.no_grad()
def grow(model: "PreTrainedModel", rows: int) -> None:
    """Gives a model embeddings for `rows` tokens, in and out, where it has fewer.

    New ones are the mean of the old: all ranks agree without a random number, and no new token starts out likely.
    """
    old = model.get_input_embeddings().weight.shape[0]
    if rows <= old:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        for x in (module.weight, getattr(module, "bias", None)):
            if x is not None:
                x[old:] = x[:old].float().mean(0).to(x.dtype)


def layers(model: "PreTrainedModel") -> list[nn.Module]:
    """The decoder layers, found by the class that the model says may not be split; none where it says nothing."""
    names = set(model._no_split_modules or ())
    return [m for m in model.modules() if type(m).__name__ in names and any(True for _ in m.parameters())]


@frozen
class Head:
    """Scaling and soft cap of a model's logits, found by trying what its config names."""

    scale: float
    cap: float | None

    @classmethod
    @torch.no_grad()
    def of(cls, model: "PreTrainedModel", name: str) -> "Head":
        """Hidden states that are large enough to show every cap go through the model's own head and through ours.

        Args:
            name: of the model, for the error.

        Raises:
            UserError: nothing that the config names gives the model's logits.
        """
        config, kind = model.config.get_text_config(), model.config.model_type
        factors = [float(x) for n in FACTORS if isinstance(x := getattr(config, n, None), int | float) and x > 0]
        caps = [c for c in (getattr(config, "final_logit_softcapping", None), None) if c != 0]
        parts = _parts(model, name)
        weight = parts["weight"]
        hidden = torch.randn(1, 4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
        hidden *= 100 / LinearHead(**parts).logits(hidden[0]).abs().max()
        hidden = torch.cat([hidden, hidden / 10], 1)
        theirs = _logits_of(model, hidden)
        tolerance = max(1e-3, 4 * torch.finfo(weight.dtype).eps)
        for scale, cap in product([1.0, *factors, *(1 / x for x in factors)], dict.fromkeys(caps)):
            ours = LinearHead(**parts, scale=scale, cap=cap).logits(hidden[0])
            if (ours - theirs).norm() <= tolerance * theirs.norm():
                return cls(scale, cap)
        raise UserError(
            f"{name}: {kind} changes its logits behind the output embeddings in a way of its own, which is "
            "not supported; take another model"
        )

    def read(self, model: "PreTrainedModel", dtype: torch.dtype) -> LinearHead:
        """The head's tensors as they are now, in the dtype to compute in."""
        # A sharded policy's forward pass sees whole tensors; a frozen reference is asked for its head outside of one.
        parts: Any = {n: x if x is None else whole(x) for n, x in _parts(model, model.config.model_type).items()}
        return LinearHead(**parts, scale=self.scale, cap=self.cap).to(dtype)


def _parts(model: "PreTrainedModel", name: str) -> dict[str, Tensor | None]:
    """Weight and bias, and LoRA's two matrices where the head has an active adapter."""
    head: Any = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or not weight.is_floating_point() or weight.ndim != 2:
        raise UserError(
            f"{name}: its output head is quantized or no matrix, which is not supported; take another model"
        )
    parts = {"weight": weight, "bias": getattr(head, "bias", None)}
    if not hasattr(head, "lora_A") or head.disable_adapters or head.merged:
        return parts
    active = [a for a in head.active_adapters if a in head.lora_A]
    if any(getattr(head, "lora_variant", {}).get(a) for a in active) or any(
        head.lora_B[a].bias is not None for a in active
    ):
        raise UserError(f"{name}: the output head has a variant of LoRA; only plain LoRA is supported there")
    if active:
        parts["down"] = torch.cat([head.scaling[a] * head.lora_A[a].weight for a in active]).to(weight.dtype)
        parts["up"] = torch.cat([head.lora_B[a].weight for a in active], 1).to(weight.dtype)
    return parts


def _logits_of(model: nn.Module, hidden: Tensor) -> Tensor:
    """The model's own logits [tokens, V] for last-layer states that are put into its body's output."""

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        output.last_hidden_state = hidden
        return output

    hook = model.base_model.register_forward_hook(replace)
    try:
        ids = torch.zeros(1, hidden.shape[1], dtype=torch.long, device=hidden.device)
        logits = model(input_ids=ids, use_cache=False).logits[0]
    finally:
        hook.remove()
    return logits if logits.dtype == torch.float64 else logits.float()
