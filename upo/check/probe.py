"""True shapes without memory: a model of any size on tensors that have no content (torch's fake ones)."""

import copy
from collections import Counter
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, fields
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from upo.check.plan import Shape
from upo.data.layout import Responses
from upo.models.head import layers
from upo.models.loading import new_model
from upo.models.policy import Policy
from upo.ops import prefix_attention
from upo.runtime.flops import Cost

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from upo.methods.common.base import Method


class Flash:
    """Stands for attention kernels of GPUs: they keep query, key, value, output, and one number a query and head."""

    calls = 0
    window = None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, cap: float | None = None
    ) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2).contiguous()


def skeleton(policy: Policy, mode: FakeTensorMode) -> "PreTrainedModel":
    """The policy's model with all its shapes and no content."""
    with torch.device("meta") if policy.adapter else mode:
        model = new_model(policy.model_config, policy.dtype)
    if model._supports_attention_backend:
        prefix_attention.register()
        model.set_attn_implementation(prefix_attention.NAME)
    if policy.adapter is not None:
        adapter = copy.copy(policy.adapter)
        adapter.path = None  # one that it starts from is about as large
        with torch.device("meta"):
            adapter.attach(model, policy.path, grown=False)
        with mode:  # peft moves parameters about as fake ones do not allow
            made = {id(x): torch.empty_like(x, device="cpu") for x in (*model.parameters(), *model.buffers())}
            made |= {id(p): nn.Parameter(made[id(p)], p.requires_grad) for p in model.parameters()}
        for part in model.modules():
            for name, x in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
                setattr(part, name, made[id(x)])
    return model


def shape_of(method: "Method", mode: FakeTensorMode) -> Shape:
    """Counts the parameters of a method whose policy has its model; further heads are made here, without content."""
    model = method.policy.model
    with mode:
        method.add_heads()
    every = dict(method.named_parameters())
    blocks = [sum(p.numel() for p in block.parameters()) for block in layers(model)]
    head: Tensor = model.get_output_embeddings().weight  # type: ignore[union-attr]
    frozen = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad]
    four_bit = [w.numel() for w in frozen if w is not head] if method.policy.quantization else []
    total = sum(p.numel() for p in every.values())
    return Shape(
        parameters=total,
        trained=sum(p.numel() for p in every.values() if p.requires_grad),
        matrices=Cost.of(model).weights,
        outside=total - sum(blocks),
        block=max(blocks, default=0),
        largest=max(p.numel() for p in every.values()),
        vocabulary=head.shape[0],
        width=head.shape[1],
        layers=max(1, len(blocks)),
        bytes=head.element_size(),
        four_bit=sum(four_bit),
        matrix=max(four_bit, default=0),
        adapter=method.policy.adapter is not None,
    )


def activation_bytes(
    policy: Policy, responses: Responses, mode: FakeTensorMode, *, mixed: bool, gpu: bool
) -> float | None:
    """What autograd keeps of a forward pass through the layers, without parameters and their copies.

    Args:
        gpu: whether attention is a GPU's kernel; otherwise the pieces of `prefix_attention`.

    Returns:
        Bytes; None for models whose forward pass depends on the content of its tensors.
    """
    model, kept = policy.model, {}
    packed = responses.layout == "packed" and model._supports_attention_backend
    plan: Any = Flash() if gpu else prefix_attention.segments(responses) if packed else None
    if isinstance(plan, prefix_attention.Segments):
        _ = plan.order  # made now: inside, its tensors would have no content
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    copies = Counter(tuple(sorted(p.shape)) for p in model.parameters() if p.dim() == 2) if mixed else Counter()
    keep_alive = []

    def pack(x: Tensor) -> Tensor:
        keep_alive.append(x)
        storage = x.untyped_storage()
        if storage._cdata not in own and not (x.dtype == torch.bfloat16 and tuple(sorted(x.shape)) in copies):
            kept[storage._cdata] = storage.nbytes()
        return x

    autocast: AbstractContextManager = torch.autocast("cpu", torch.bfloat16, enabled=mixed)
    with mode, autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        made = _fake(responses, mode)
        options: dict[str, Any] = {"input_ids": made.input_ids, "use_cache": False}
        if packed or gpu:
            options |= prefix_attention.packed_inputs(made, plan)
        try:
            out = model.base_model(**options).last_hidden_state
        except (RuntimeError, prefix_attention.UnknownAttention):
            return None
    del out
    return float(sum(kept.values()))


def _fake(x: Any, mode: FakeTensorMode) -> Any:
    """Tensors without content in place of the real ones, also inside attrs classes."""
    if isinstance(x, Tensor):
        return mode.from_tensor(x)
    if hasattr(x, "__attrs_attrs__"):
        return evolve(x, **{a.name: _fake(getattr(x, a.name), mode) for a in fields(type(x)) if a.init})
    return x
