"""What tests of losses share: the fixtures of the golden values, methods without weights, and the usual checks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tiny import batch_of, units
from torch import Tensor

from upo.data.views import PairedView
from upo.methods.common.base import Method
from upo.models.logps import ResponseLogps
from upo.models.policy import Policy
from upo.models.reference import FrozenReference

FIRST, SECOND = (-40.0, -42.0, -55.0, -50.0), (-45.0, -42.0, -60.0, -50.0)
"""Log-probs of chosen and rejected under policy, reference, policy, reference: 20 and 25 tokens; D = 7 in both."""


def logps_of(
    logps: Any, *, reference: Any = None, lengths: Sequence[int] | None = None, prompts: Sequence[int] | None = None
) -> ResponseLogps:
    """Responses, in float64 where lists are given; of one token and of prompts of their own by default."""
    logps, reference = (
        x if isinstance(x, Tensor) or x is None else torch.tensor(x, dtype=torch.float64) for x in (logps, reference)
    )
    n = len(logps)
    return ResponseLogps(
        logps,
        torch.tensor(lengths if lengths is not None else [1] * n),
        torch.tensor(prompts if prompts is not None else range(n)),
        reference,
    )


def golden_pair(fixture: tuple[float, ...]) -> tuple[ResponseLogps, ResponseLogps]:
    """A fixture as chosen and rejected."""
    pi_w, ref_w, pi_l, ref_l = fixture
    return logps_of([pi_w], reference=[ref_w], lengths=[20]), logps_of([pi_l], reference=[ref_l], lengths=[25])


def golden_rows(fixture: tuple[float, ...]) -> ResponseLogps:
    """A fixture as a batch of one pair."""
    pi_w, ref_w, pi_l, ref_l = fixture
    return logps_of([pi_w, pi_l], reference=[ref_w, ref_l], lengths=[20, 25], prompts=[0, 0])


def total(method: Method, logps: ResponseLogps) -> Tensor:
    """The loss of each pair: its terms times their scales; all of them are averaged over pairs."""
    batch = batch_of(units([(2, [1, 1])] * (len(logps.lengths) // 2)), PairedView())
    terms = method.terms(batch, logps, {})
    assert {t.mean_over for t in terms.values()} == {"prompts"}
    return torch.stack([t.weight * t.values for t in terms.values()]).sum(0)


def made(kind: type[Method], **options: Any) -> Any:
    """A method without weights, for its `loss` and `reward`."""
    return kind(Policy(path="nowhere"), FrozenReference() if kind.needs.reference is not None else None, **options)


def values(loss: Tensor) -> list[float]:
    return loss.detach().tolist()


def minus_log_sigmoid(x: float) -> float:
    """-log sigmoid(x), with math alone."""
    return math.log1p(math.exp(-x)) if x > 0 else -x + math.log1p(math.exp(x))


def draws(*shape: int, scale: float = 20.0, seed: int = 0) -> Tensor:
    """Normal draws in float64."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of the summed loss, by each input."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    return torch.autograd.grad(loss(*inputs).sum(), inputs)


def assert_gradcheck(loss: Callable[..., Tensor], *inputs: Tensor) -> None:
    assert torch.autograd.gradcheck(loss, tuple(x.detach().clone().requires_grad_() for x in inputs))


FAR = (1e4, -1e4, 0.0, -1e-9)


def assert_finite_far_out(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Value and gradient, in float32, at all couples of values in `FAR` for chosen and rejected."""
    w, r = (x.flatten() for x in torch.meshgrid(torch.tensor(FAR), torch.tensor(FAR), indexing="ij"))
    assert loss(w, r).isfinite().all()
    assert all(g.isfinite().all() for g in gradients(loss, w, r))
