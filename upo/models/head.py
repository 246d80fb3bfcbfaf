"""Parts of a Hugging Face model: output head with scaling and soft cap, embeddings for new tokens, decoder layers."""

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
"""Config fields of factors or divisors of the logits (Cohere; Granite and others; Falcon-H1; Muse)."""


@torch.no_grad()
def grow(model: "PreTrainedModel", rows: int) -> None:
    """Extends the input and output embeddings of a model to `rows` tokens if it has fewer.

    New embeddings are the mean of the old ones: equal on all ranks without random numbers, and no new token is more
    likely than the average at the start.
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
    """The decoder layers, found by the classes in `_no_split_modules`; none if the model does not name any."""
    names = set(model._no_split_modules or ())
    return [m for m in model.modules() if type(m).__name__ in names and any(True for _ in m.parameters())]


@frozen
class Head:
    """Scale and soft cap of a model's logits, determined by trying the values that its config names."""

    scale: float
    cap: float | None

    @classmethod
    @torch.no_grad()
    def of(cls, model: "PreTrainedModel", name: str) -> "Head":
        """The scale and cap with which `LinearHead` reproduces the model's own logits.

        They are compared on random hidden states, large enough for a cap to show.

        Args:
            name: of the model, for the error.

        Raises:
            UserError: the output head reads other states than the layers' last ones, or no combination of the values in
                the config reproduces the logits.
        """
        config, kind = model.config.get_text_config(), model.config.model_type
        factors = [float(x) for n in FACTORS if isinstance(x := getattr(config, n, None), int | float) and x > 0]
        caps = [c for c in (getattr(config, "final_logit_softcapping", None), None) if c != 0]
        if model.base_model is model:
            raise UserError(
                f"{name}: {kind} does not say which of its parts is below its output head; take another model"
            )
        parts = _parts(model, name)
        weight = parts["weight"]
        hidden = torch.randn(1, 4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
        hidden *= 100 / LinearHead(**parts).logits(hidden[0]).abs().max()
        hidden = torch.cat([hidden, hidden / 10], 1)
        model_logits, states, last = _logits_of(model, hidden)
        tolerance = max(1e-3, 4 * torch.finfo(weight.dtype).eps)
        if states is None or states.shape != last.shape or not (states - last).norm() <= tolerance * last.norm():
            raise UserError(
                f"{name}: {kind} changes its states between its layers and its output embeddings in a way that is not "
                "supported; take another model"
            )
        for scale, cap in product([1.0, *factors, *(1 / x for x in factors)], dict.fromkeys(caps)):
            logits = LinearHead(**parts, scale=scale, cap=cap).logits(hidden[0])
            if (logits - model_logits).norm() <= tolerance * model_logits.norm():
                return cls(scale, cap)
        raise UserError(
            f"{name}: {kind} changes its logits behind the output embeddings in a way that is not supported; "
            "take another model"
        )

    def read(self, model: "PreTrainedModel", dtype: torch.dtype) -> LinearHead:
        """The head with its present tensors, in the dtype to compute in."""
        # In a sharded policy's forward pass tensors are whole; a reference's head is also read outside a forward pass.
        parts: Any = {n: x if x is None else whole(x) for n, x in _parts(model, model.config.model_type).items()}
        return LinearHead(**parts, scale=self.scale, cap=self.cap).to(dtype)


def _parts(model: "PreTrainedModel", name: str) -> dict[str, Tensor | None]:
    """Weight and bias of the output head, and LoRA's two matrices if it has an active adapter."""
    head: Any = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or not weight.is_floating_point() or weight.ndim != 2:
        raise UserError(
            f"{name}: its output head is quantized or not a matrix, which is not supported; take another model"
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


def _logits_of(model: "PreTrainedModel", hidden: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """The model's own logits [tokens, V] for given states, which replace those that its output embeddings read.

    Returns:
        The logits; the states [1, tokens, D] that were replaced, None where its forward does not call that module; and
        the last hidden states [1, tokens, D] of its body.
    """
    replaced: list[Tensor] = []
    last: list[Tensor] = []

    def replace(module: nn.Module, inputs: Any) -> Any:
        replaced.append(inputs[0])
        return (hidden, *inputs[1:])

    inputs = {"input_ids": torch.zeros(1, hidden.shape[1], dtype=torch.long, device=hidden.device), "use_cache": False}
    head: Any = model.get_output_embeddings()
    hooks = [
        head.register_forward_pre_hook(replace),
        model.base_model.register_forward_hook(lambda module, inputs, output: last.append(output.last_hidden_state)),
    ]
    try:
        logits = model(**inputs).logits[0]
        if not last:  # some go round it, to its parts
            model.base_model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits, replaced[0] if replaced else None, last[0]
