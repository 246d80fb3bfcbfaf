"""KL divergence between two models over the whole vocabulary, computed from hidden states in chunks of tokens."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from upo.ops.linear_head import ELEMENTS, Gradients, LinearHead

FLOOR = -1e30
"""Stands for log 0."""


def linear_kl(
    hidden: Float[Tensor, "tokens D"],
    head: LinearHead,
    reference_hidden: Float[Tensor, "tokens E"],
    reference_head: LinearHead,
    chunk: int | None = None,
    reverse: bool = False,
) -> Float[Tensor, "tokens"]:
    """KL(reference || policy) = sum_v q_v (log q_v - log p_v) at each token, in fp32 nats (float64 stays float64).

    If one model has more tokens at the end of its vocabulary (control tokens, padding), the divergence is that of the
    two distributions over the common tokens. The reference gets no gradient. The backward pass computes each chunk's
    logits again, so that memory holds `chunk` rows of V for each model at a time.

    Args:
        chunk: tokens per chunk; null: as many as hold `ELEMENTS` logits, 512 at most.
        reverse: KL(policy || reference) instead, whose expectation is under the policy.
    """
    sizes = len(head.weight), len(reference_head.weight)
    if sizes[0] != sizes[1]:
        head, reference_head = head.first(min(sizes)), reference_head.first(min(sizes))
    reference = reference_head.detach()
    return _LinearKL.apply(hidden, head, reference_hidden.detach(), reference, chunk, reverse, *head.tensors)  # type: ignore[return-value]


def eager_linear_kl(
    hidden: Tensor, head: LinearHead, reference_hidden: Tensor, reference_head: LinearHead, reverse: bool = False
) -> Tensor:
    """The same without chunks, which tests compare with."""
    logp = head.logits(hidden).log_softmax(-1).clamp(min=FLOOR)
    logq = reference_head.logits(reference_hidden).log_softmax(-1).clamp(min=FLOOR).detach()
    if reverse:
        return (logp.exp() * (logp - logq)).sum(-1)
    return (logq.exp() * (logq - logp)).sum(-1)


class _LinearKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, reference_hidden, reference, chunk, reverse, *tensors):
        head = head.holding(*tensors)
        chunk = chunk or min(512, max(1, ELEMENTS // (2 * len(head.weight))))
        kl = torch.empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        normalizers = torch.empty_like(kl), torch.empty_like(kl)
        for part in head.chunks(len(hidden), chunk):
            logp, logq = head.logits(hidden[part]), reference.logits(reference_hidden[part])
            for x, normalizer in zip((logp, logq), normalizers, strict=True):
                normalizer[part] = x.logsumexp(-1)
                x.sub_(normalizer[part, None]).clamp_(min=FLOOR)  # log 0: 0 (log 0 - log 0) is 0, not NaN
            if reverse:
                kl[part] = logp.exp().mul_(logp.sub_(logq)).sum(-1)
            else:
                kl[part] = logq.exp().mul_(logq.sub_(logp)).sum(-1)
        ctx.save_for_backward(hidden, reference_hidden, *normalizers, kl, *tensors)
        ctx.form, ctx.reference, ctx.chunk = {"scale": head.scale, "cap": head.cap}, reference, chunk
        ctx.reverse = reverse
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_kl):
        hidden, reference_hidden, normalizer, reference_normalizer, kl, *tensors = ctx.saved_tensors
        head, reference = LinearHead(*tensors, **ctx.form), ctx.reference
        gradients = Gradients(hidden, head, (ctx.needs_input_grad[0], *ctx.needs_input_grad[6:]))
        # With z the policy's logits, p the policy and q the reference:
        #     d KL(q || p) / d z_v = p_v - q_v          d KL(p || q) / d z_v = p_v (log p_v - log q_v - KL(p || q))
        for part in head.chunks(len(hidden), ctx.chunk):
            logits = head.logits(hidden[part])
            slope = head.slope(logits)
            logp = logits.sub_(normalizer[part, None]).clamp_(min=FLOOR)
            logq = reference.logits(reference_hidden[part]).sub_(reference_normalizer[part, None]).clamp_(min=FLOOR)
            if ctx.reverse:
                p = logp.exp()
                kl_by_logits = logp.sub_(logq).sub_(kl[part, None]).mul_(p)  # p (log p - log q - KL)
            else:
                kl_by_logits = logp.exp_().sub_(logq.exp_())  # p - q
            grad_logits = kl_by_logits.mul_(grad_kl[part, None])
            gradients.add(part, grad_logits, slope)
        grad_hidden, *grad_tensors = gradients.tensors()
        return grad_hidden, None, None, None, None, None, *grad_tensors
