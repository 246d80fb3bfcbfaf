"""Policies and references that answer with made-up numbers, so that a whole method can be asked what its loss is."""

import copy
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from attrs import evolve
from torch import Tensor

from upo.data.batch import Step
from upo.data.layout import Responses
from upo.data.steps import StepData
from upo.data.units import Unit
from upo.methods.common.base import Method
from upo.methods.common.stepwise import CoupledLoss

PLAIN = (-7.0, -6.0)
"""Log-probs under policy and reference of responses that nobody asks about."""


def one_step(method: Method, data: StepData, *, tokens: int | None = None) -> Step:
    """All units of the data as one step of one micro-batch.

    Args:
        tokens: cuts all responses to so many.
    """
    if tokens is not None:
        groups = [
            tuple(evolve(g, responses=tuple(ids[:tokens] for ids in g.responses)) for g in u.groups) for u in data.units
        ]
        units = tuple(evolve(u, groups=cut) for u, cut in zip(data.units, groups, strict=True))
        data = copy.copy(data)
        data.split = evolve(data.split, units=units)
    every = range(len(data))
    batch = data.batch(every)
    batch = evolve(batch, global_index=torch.arange(sum(data.units[i].size for i in every)))
    return Step((batch,), batch.counts)


def _cut(unit: Unit, tokens: int) -> Unit:
    groups = (evolve(g, responses=tuple(ids[:tokens] for ids in g.responses)) for g in unit.groups)
    return evolve(unit, groups=tuple(groups))


def loss(
    method: Method, step: Step, logps: Tensor, reference: Tensor, statistics: dict[str, Tensor] | None = None
) -> Tensor:
    """The loss of a step of one micro-batch whose responses have these log-probs [N], evenly spread over their tokens.

    Args:
        statistics: the step's, where they are to stay as they were; null asks the method for them.
    """
    with answers(method, step, logps, reference):
        (batch,) = step.micro_batches
        if statistics is None or isinstance(method, CoupledLoss):  # there they carry the loss itself
            statistics = method.statistics(step)
        return method.loss_of(batch, step, statistics, "train")


def statistics(method: Method, step: Step, logps: Tensor, reference: Tensor) -> dict[str, Tensor]:
    with answers(method, step, logps, reference), torch.no_grad():
        return method.statistics(step)


@contextmanager
def answers(method: Method, step: Step, logps: Tensor, reference: Tensor) -> Iterator[None]:
    """Inside, policy and reference know nothing but these numbers."""
    (batch,) = step.micro_batches

    def policy(responses: Responses, outputs: Collection[str] = (), _: Any = None) -> dict[str, Tensor]:
        own = responses.lengths is batch.responses.lengths
        x = logps if own else logps.new_full((len(responses.lengths),), PLAIN[0])
        return {"logps": x} | _outputs(method, responses, x, outputs)

    def frozen(responses: Responses, names: Collection[str]) -> dict[str, Tensor]:
        own = responses.lengths is batch.responses.lengths
        x = reference if own else reference.new_full((len(responses.lengths),), PLAIN[1])
        return {"logps": x} | _outputs(method, responses, x, names)

    with ExitStack() as stack:
        stack.enter_context(patch.object(method.policy, "forward", policy))
        if method.reference is not None:
            changed = {
                "logps": lambda r: frozen(r, ())["logps"],
                "outputs": frozen,
                "linear_head": method.policy.linear_head,
            }
            stack.enter_context(patch.multiple(method.reference, **changed))
        yield


def _outputs(method: Method, responses: Responses, logps: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """The same for whoever asks: states and divergences by token, seeded."""
    n, width, layers = len(responses.targets), method.policy.hidden_size, method.policy.model.config.num_hidden_layers
    generator = torch.Generator().manual_seed(n)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(logps)

    made = {
        "token_logps": lambda: (logps / responses.lengths)[responses.response_index],
        "kl": lambda: draw(n),
        "reverse_kl": lambda: draw(n),
        "sum_p2": lambda: 0.01 + 0.9 * draw(n),
        "hidden": lambda: draw(n, width),
        "layers": lambda: draw(n, layers, width),
        "prompt_hidden": lambda: draw(len(responses.prompt_end), width),
    }
    return {name: made[name]() for name in sorted(names)}
