"""The output head, which turns hidden states into logits, and its gradients: the chunked kernels need no more."""

from collections.abc import Iterator

import torch
from attrs import field, frozen
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

ELEMENTS = 2**24
"""Number of logits in memory at a time, by default: 64 MiB in fp32."""


@frozen(eq=False)
class LinearHead:
    """logits = cap tanh(x / cap) with x = scale (hidden W^T + hidden A^T B^T + bias); without `cap`, logits = x."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, "V"] | None = None
    down: Float[Tensor, "rank D"] | None = None
    """LoRA's A, its scaling included."""
    up: Float[Tensor, "V rank"] | None = None
    """LoRA's B."""
    scale: float = field(default=1.0, kw_only=True)
    cap: float | None = field(default=None, kw_only=True)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """weight, bias, down, up."""
        return self.weight, self.bias, self.down, self.up

    def holding(self, *tensors: Tensor | None) -> "LinearHead":
        """A head of the same scale and cap with these `tensors`."""
        return LinearHead(*tensors, scale=self.scale, cap=self.cap)  # type: ignore[arg-type]

    def to(self, dtype: torch.dtype) -> "LinearHead":
        return self.holding(*(None if x is None else x.to(dtype) for x in self.tensors))

    def first(self, tokens: int) -> "LinearHead":
        """The head restricted to the first `tokens` of the vocabulary."""
        bias, up = (None if x is None else x[:tokens] for x in (self.bias, self.up))
        return self.holding(self.weight[:tokens], bias, self.down, up)

    def detach(self) -> "LinearHead":
        return self.holding(*(None if x is None else x.detach() for x in self.tensors))

    def logits(self, hidden: Float[Tensor, "tokens D"]) -> Float[Tensor, "tokens V"]:
        """Logits in fp32 (float64 stays float64), in newly allocated memory."""
        x = linear(hidden, self.weight, self.bias)
        if self.down is not None and self.up is not None:
            x = x + linear(linear(hidden, self.down), self.up)
        x = x if x.dtype == torch.float64 else x.float()
        x = x * self.scale if self.scale != 1 else x
        return x if self.cap is None else self.cap * torch.tanh(x / self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d (hidden W^T), elementwise [tokens, V], or a number if it is constant."""
        return self.scale if self.cap is None else (logits / self.cap).square_().neg_().add_(1).mul_(self.scale)

    def chunks(self, tokens: int, chunk: int | None) -> Iterator[slice]:
        """Slices of the rows [0, tokens).

        Args:
            chunk: rows per slice; null: as many as hold `ELEMENTS` logits, 1024 at most.
        """
        size = chunk or min(1024, max(1, ELEMENTS // len(self.weight)))
        return (slice(i, i + size) for i in range(0, tokens, size))


class Gradients:
    """Gradients of hidden states and of a head's tensors, accumulated chunk by chunk."""

    def __init__(self, hidden: Tensor, head: LinearHead, needed: tuple[bool, ...]):
        """
        Args:
            needed: which gradients to compute, in the order hidden, weight, bias, down, up.
        """
        self.inputs, self.head = hidden, head
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        # Sums over many chunks are kept in fp32: in bf16 small later addends would be rounded away.
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        self.weight, self.bias, self.down, self.up = (
            torch.zeros_like(x, dtype=dtype) if x is not None and n else None
            for x, n in zip(head.tensors, needed[1:], strict=True)
        )

    def add(self, part: slice, grad_logits: Tensor, slope: Tensor | float) -> None:
        """Adds the contributions of a chunk to all gradients.

        With y = hidden W^T + hidden A^T B^T + bias, the input of scale and cap, and g = d loss / d y:

            of hidden  g W + (g B) A      of W  g^T hidden      of bias  sum over tokens of g
            of A       (g B)^T hidden     of B  g^T (hidden A^T)

        Args:
            grad_logits: d loss / d logits [chunk, V]; overwritten.
            slope: d logits / d y, see `LinearHead.slope`.
        """
        head, hidden = self.head, self.inputs[part]
        if isinstance(slope, Tensor) or slope != 1:
            grad_logits.mul_(slope)
        if self.bias is not None:
            self.bias += grad_logits.sum(0)
        g = grad_logits.to(hidden.dtype)
        if self.hidden is not None:
            self.hidden[part] = g @ head.weight
        if self.weight is not None:
            _add_product(self.weight, g.T, hidden)
        if head.down is not None and head.up is not None:
            g_up = g @ head.up
            if self.hidden is not None:
                self.hidden[part] += g_up @ head.down
            if self.down is not None:
                _add_product(self.down, g_up.T, hidden)
            if self.up is not None:
                _add_product(self.up, g.T, linear(hidden, head.down))

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Gradients of hidden and of `head.tensors`, each in the dtype of its tensor."""
        sums = (self.weight, self.bias, self.down, self.up)
        cast = (None if g is None or x is None else g.to(x.dtype) for g, x in zip(sums, self.head.tensors, strict=True))
        return self.hidden, *cast


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, in place."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
