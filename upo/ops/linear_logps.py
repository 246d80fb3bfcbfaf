"""Log-probs of target tokens straight from hidden states: the head in chunks, never `[tokens, V]` at once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_logps(
    hidden: Float[Tensor, "tokens D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "tokens"],
    bias: Float[Tensor, "V"] | None = None,
    chunk: int = 1024,
) -> Float[Tensor, "tokens"]:
    """log softmax(hidden @ weight.T + bias) at the targets, in fp32 nats (float64 stays float64).

    The backward pass computes each chunk's logits again, so that memory holds `chunk` rows of V at a time.
    """
    return _LinearLogps.apply(hidden, weight, targets, bias, chunk)  # type: ignore[return-value]


def eager_linear_logps(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """The plain twin, which tests compare against."""
    logits = _logits(hidden, weight, bias)
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logits if logits.dtype == torch.float64 else logits.float()


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, bias, chunk):
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logps = torch.empty(len(targets), dtype=dtype, device=hidden.device)
        normalizer = torch.empty_like(logps)
        for i in range(0, len(targets), chunk):
            part = slice(i, i + chunk)
            logits = _logits(hidden[part], weight, bias)
            normalizer[part] = logits.logsumexp(-1)
            logps[part] = logits.gather(-1, targets[part, None])[:, 0] - normalizer[part]
        ctx.save_for_backward(hidden, weight, targets, bias, normalizer)
        ctx.chunk = chunk
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight, targets, bias, normalizer = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Sums over many chunks are kept in fp32: in bf16 later chunks would vanish beside the earlier ones.
        exact = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=exact) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and ctx.needs_input_grad[3] else None
        for i in range(0, len(targets), ctx.chunk):
            part = slice(i, i + ctx.chunk)
            # d logp / d logits = onehot(target) - softmax
            d = _logits(hidden[part], weight, bias).sub_(normalizer[part, None]).exp_()
            d.mul_(-grad[part, None])
            d.scatter_add_(-1, targets[part, None], grad[part, None].to(d.dtype))
            if grad_bias is not None:
                grad_bias += d.sum(0)
            d = d.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = d @ weight
            if grad_weight is not None:
                grad_weight += d.T @ hidden[part]
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if bias is not None and grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, None, grad_bias, None
