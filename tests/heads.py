"""Random heads, and what the largest tensor of a computation is."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from upo.ops.linear_head import LinearHead


def inputs(
    tokens: int = 23,
    width: int = 5,
    vocabulary: int = 11,
    dtype: torch.dtype = torch.float64,
    bias: bool = False,
    rank: int = 0,
    seed: int = 0,
    **form: float,
) -> tuple[Tensor, LinearHead, Tensor]:
    """Hidden states, a head and targets; everything that is a float wants a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    hidden, weight = draw(tokens, width), draw(vocabulary, width)
    low = (draw(rank, width), draw(vocabulary, rank)) if rank else (None, None)
    return hidden, LinearHead(weight, draw(vocabulary) if bias else None, *low, **form), targets


def leaves(hidden: Tensor, head: LinearHead) -> list[Tensor]:
    return [x for x in (hidden, *head.tensors) if x is not None]


class _Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))])
        return out


def largest_tensor(work: Callable[[], object]) -> int:
    """Elements of the largest tensor that any operation of forward and backward gives."""
    with _Largest() as mode:
        work()
    return mode.elements
