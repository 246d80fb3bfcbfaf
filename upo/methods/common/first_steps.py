"""The first optimizer steps must reach all that is trained; otherwise a run would go to its end and learn nothing."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from upo.errors import RunFailed
from upo.models.logps import ResponseLogps
from upo.runtime.collectives import max_over_ranks

STEPS = 3
"""Optimizer steps that are looked at together: in a single one a loss may be flat, e.g. a hinge that is satisfied."""
FLAT = 1e-12
"""Derivatives of a loss up to this one count as 0: squares of what the weights get of them may underflow."""
LAYER = re.compile(r"policy\..*?\.\d+\.")
"""How the names of one decoder layer's parameters begin."""
LOOK = (
    "look at what computes without gradient between there and the loss: 4-bit layers on a CPU, `detach` or `no_grad` "
    "in code of your own"
)


def learnable(loss: Tensor) -> Tensor:
    """The loss itself.

    Raises:
        RunFailed: nothing that is trained takes part in it.
    """
    if not loss.requires_grad:
        raise RunFailed(f"the loss depends on no parameter that is trained, so nothing would be learned; {LOOK}")
    return loss


class FirstSteps:
    """Whether gradients arrive in the first steps of a fit."""

    def __init__(self) -> None:
        self.number = 0
        self.derivatives: list[Tensor] = []
        """The largest one of a loss by each quantity that the policy gave to it."""
        self.norms: list[Tensor] = []
        self.reached: set[str] = set()
        """Names of the parameters that have had a gradient."""

    def watch(self, logps: ResponseLogps) -> None:
        """Takes note, in the backward pass of a micro-batch, of whether its loss depends on what the policy gave."""
        if self.number < STEPS:
            for x in (logps.logps, *logps.outputs.values()):
                if x.requires_grad and x.numel():
                    x.register_hook(self._note)

    def _note(self, derivative: Tensor | None) -> None:
        if derivative is not None:  # of what a loss does not use
            self.derivatives.append(derivative.abs().amax().float())

    def check(self, method: Any, optimizer: Optimizer, norm: Tensor) -> None:
        """Looks at the gradients of a step, after its backward passes; all ranks call it.

        Args:
            method: what is trained: policy and heads.
            norm: of the policy's gradient, over all ranks.

        Raises:
            RunFailed: in the first steps no rank had a gradient for a head, a decoder layer or a part of an adapter; or
                the policy's was 0 each time, though the loss depends on it.
        """
        if self.number >= STEPS:
            return
        self.number += 1
        taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
        trained = {name: p for name, p in method.named_parameters() if id(p) in taken}
        self.norms.append(norm.detach())
        self.reached |= {name for name, p in trained.items() if p.grad is not None}
        if self.number < STEPS and method.global_step + 1 != method.trainer.max_steps:
            return
        self.number = STEPS
        depends = bool(self.derivatives) and bool(torch.stack(self.derivatives).max() > FLAT)
        found = torch.tensor([depends, *(name in self.reached for name in trained)], device=norm.device).int()
        depends, *reached = max_over_ranks(found).tolist()
        check_reached(dict(zip(trained, map(bool, reached), strict=True)), whole_model=method.policy.adapter is None)
        if depends and not torch.stack(self.norms).any():
            raise RunFailed(
                "the policy's gradient was exactly 0 in the first steps, though the loss depends on its log-probs: it "
                f"would not learn; {LOOK}"
            )


def check_reached(reached: Mapping[str, bool], whole_model: bool) -> None:
    """Refuses parameters that no gradient has come to.

    Args:
        reached: whether there was one, by name; the policy's begin with `policy.`.
        whole_model: whether all weights of a model are trained. It may have some that no response goes through, such as
            a decoder's cross attention: they are named in a warning. An adapter shall learn wherever it was put.

    Raises:
        RunFailed: names the first of them.
    """
    without = [name for name, there in reached.items() if not there]
    if not without:
        return
    text = f"{len(without)} of {len(reached)} trained parameters had no gradient in the first steps: `{without[0]}`"
    layers = {layer for name, there in reached.items() if there and (layer := _layer(name))}
    unused = whole_model and layers and all(name.startswith("policy.") for name in without)
    if unused and layers >= {layer for name in without if (layer := _layer(name))}:
        warnings.warn(f"{text} ...; they stay as they are; a model may have weights that it does not use here")
        return
    raise RunFailed(f"{text} ...; they would not learn; {LOOK}; an adapter's can be left out (target_modules)")


def _layer(name: str) -> str | None:
    found = LAYER.match(name)
    return found and found[0]
