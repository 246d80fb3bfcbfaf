"""Log-probs, entropy and more of response tokens, computed from hidden states in chunks of tokens: logits [tokens, V]
never exist at once."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from upo.ops.linear_head import Gradients, LinearHead

KEPT = 2**25
"""Number of probabilities that are kept for the backward pass: 128 MiB in fp32."""

NAMES = ("token_logps", "entropy", "top_logp", "sum_p2")


def linear_logps(
    hidden: Float[Tensor, "tokens D"], head: LinearHead, targets: Int[Tensor, "tokens"], chunk: int | None = None
) -> Float[Tensor, "tokens"]:
    """log softmax(logits) at the targets, in fp32 nats (float64 stays float64)."""
    return linear_values(hidden, head, targets, ("token_logps",), chunk)["token_logps"]


def linear_values(
    hidden: Float[Tensor, "tokens D"],
    head: LinearHead,
    targets: Int[Tensor, "tokens"],
    names: Sequence[str],
    chunk: int | None = None,
) -> dict[str, Float[Tensor, "tokens"]]:
    """Quantities of p = softmax(logits) at each token, by name, in fp32 (float64 stays float64), with gradients.

    `token_logps`: log p of the target; `entropy`: -sum p log p; `top_logp`: log of the largest p, all in nats;
    `sum_p2`: sum p^2, the probability that two samples agree, in (0, 1].

    Memory holds `chunk` rows of V at a time, and the probabilities of the first KEPT / V tokens for the backward pass,
    which computes the logits of the other tokens again. With a soft cap or with `entropy` no probabilities are kept.

    Args:
        names: some of `NAMES`.
        chunk: tokens per chunk; null: as many as hold `ELEMENTS` logits, 1024 at most.
    """
    keep = KEPT if torch.is_grad_enabled() and head.cap is None and "entropy" not in names else 0
    values = _LinearValues.apply(hidden, targets, head, tuple(names), chunk, keep, *head.tensors)
    return dict(zip(names, values, strict=True))  # type: ignore[arg-type]


def eager_linear_values(hidden: Tensor, head: LinearHead, targets: Tensor) -> dict[str, Tensor]:
    """The same without chunks, which tests compare with."""
    logps = head.logits(hidden).log_softmax(-1)
    return {
        "token_logps": logps.gather(-1, targets[:, None])[:, 0],
        "entropy": -(logps.exp() * logps).sum(-1),
        "top_logp": logps.amax(-1),
        "sum_p2": (2 * logps).logsumexp(-1).exp(),
    }


class _LinearValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, targets, head, names, chunk, keep, *tensors):
        head = head.holding(*tensors)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        out = {name: torch.empty(len(targets), dtype=dtype, device=hidden.device) for name in (*names, "normalizer")}
        parts = list(head.chunks(len(targets), chunk))
        probabilities: list[Tensor] = []
        for part in parts:
            logits = head.logits(hidden[part])
            top_logits = logits.amax(-1)
            target_logits = logits.gather(-1, targets[part, None])[:, 0]
            # One fused kernel in place, in a quarter of the time of logsumexp; the entropy needs the logits once more.
            p = torch.softmax(logits, -1, out=None if "entropy" in out else logits)
            top_logp = p.amax(-1).log()
            normalizer = out["normalizer"][part] = top_logits - top_logp
            keep -= p.numel()
            if keep >= 0:
                probabilities.append(p)
            if "token_logps" in out:
                out["token_logps"][part] = target_logits - normalizer
            if "top_logp" in out:
                out["top_logp"][part] = top_logp
            if "sum_p2" in out:
                out["sum_p2"][part] = torch.linalg.vector_norm(p, dim=-1).square()
            if "entropy" in out:
                out["entropy"][part] = -_finite(logits.sub_(normalizer[:, None])).mul_(p).sum(-1)
        normalizer = out.pop("normalizer")
        ctx.save_for_backward(hidden, targets, normalizer, out.get("entropy"), out.get("sum_p2"), *tensors)
        ctx.form, ctx.names, ctx.parts = {"scale": head.scale, "cap": head.cap}, names, parts
        ctx.probabilities = probabilities[::-1]  # the backward pass pops them from the end
        ctx.set_materialize_grads(False)
        return tuple(out[name] for name in names)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        hidden, targets, normalizer, entropy, sum_p2, *tensors = ctx.saved_tensors
        head = LinearHead(*tensors, **ctx.form)
        needs = ctx.needs_input_grad
        gradients = Gradients(hidden, head, (needs[0], *needs[6:]))
        by_name = {name: g[:, None] for name, g in zip(ctx.names, grads, strict=True) if g is not None}
        grad_token_logps, grad_entropy, grad_top_logp, grad_sum_p2 = (by_name.get(name) for name in NAMES)
        # With z the logits, t the target, m the likeliest token, H the entropy, and g_x = d loss / d x:
        #     d token_logps / d z_v = 1[v = t] - p_v          d entropy / d z_v = -p_v (log p_v + H)
        #     d top_logp    / d z_v = 1[v = m] - p_v          d sum_p2  / d z_v = 2 p_v (p_v - sum_p2)
        # so that g_z = p * weight + one-hot rows, where `weight` is the sum of the factors of p_v.
        for part in ctx.parts:
            if ctx.probabilities:
                p, slope = ctx.probabilities.pop(), head.scale
            else:
                logits = head.logits(hidden[part])
                slope = head.slope(logits)
                p = torch.softmax(logits, -1, out=None if grad_entropy is not None else logits)
            weight, one_hot = torch.zeros_like(normalizer[part, None]), []
            if grad_token_logps is not None:
                weight = weight - grad_token_logps[part]  # -g_token_logps
                one_hot.append((targets[part, None], grad_token_logps[part]))  # +g_token_logps 1[v = t]
            if grad_top_logp is not None:
                weight = weight - grad_top_logp[part]  # -g_top_logp
                one_hot.append((p.argmax(-1, keepdim=True), grad_top_logp[part]))  # +g_top_logp 1[v = m]
            if grad_entropy is not None:
                logp = _finite(logits.sub_(normalizer[part, None]))
                weight = weight - logp.add_(entropy[part, None]).mul_(grad_entropy[part])  # -g_entropy (log p + H)
            if grad_sum_p2 is not None:
                weight = weight + 2 * grad_sum_p2[part] * (p - sum_p2[part, None])  # +2 g_sum_p2 (p - sum_p2)
            grad_logits = p.mul_(weight)
            for index, grad in one_hot:
                grad_logits.scatter_add_(-1, index, grad.to(grad_logits.dtype))
            gradients.add(part, grad_logits, slope)
        grad_hidden, *grad_tensors = gradients.tensors()
        return grad_hidden, None, None, None, None, None, *grad_tensors


def _finite(logps: Tensor) -> Tensor:
    """Replaces log 0 by a finite number, in place, so that p log p is 0 there instead of NaN."""
    return logps.clamp_(min=-1e30)
