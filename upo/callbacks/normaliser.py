"""Whether a method can do with a reference that has no normaliser: one whose log-probs are right up to a constant of
each prompt, which must cancel in the loss."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from upo.data.batch import Step
from upo.data.layout import Responses
from upo.methods.common.base import SUMS_OF_BOTH
from upo.methods.common.needs import Needs
from upo.models.logps import AXIS, ResponseLogps

DRAWS = 8
"""Made-up log-probs on which a loss is tried, as that many steps in a row."""

STATES = ("hidden", "prompt_hidden", "prompt_mean")
"""Quantities that are vectors."""


def normaliser_cancels(method: Any, step: Step) -> bool:
    """Whether gradients stay the same whatever is added to the reference log-probs of each prompt.

    Policy and reference are not asked: their answers are made up, a few nats apart and in float64.

    Args:
        method: with its heads; it stays as it is.
        step: one of its training data.
    """
    plain, shifted = (_slopes(method, step, nats) for nats in (0.0, 10.0))
    return bool((plain - shifted).abs().max() <= 1e-7 * plain.abs().max())


def _slopes(method: Any, step: Step, nats: float) -> Tensor:
    """Gradients of the loss by each response's log-prob, draw after draw.

    Args:
        nats: the standard deviation of what is added to the reference log-probs of a prompt.
    """
    twin = copy.copy(method)  # what it logs, and keeps from step to step, is its own
    twin._buffers = {name: x.clone() for name, x in method._buffers.items()}
    twin._modules = method._modules | {"val_means": copy.deepcopy(method.val_means)}
    twin.update_metrics = lambda *_: None
    slopes = []
    for draw in range(DRAWS):
        answers = _Answers(method.policy.hidden_size, draw, nats, [b.responses for b in step.micro_batches])
        twin.response_logps = answers.response_logps
        statistics = twin.statistics(step)
        loss = torch.stack([twin.loss_of(batch, step, statistics, "val") for batch in step.micro_batches]).sum()
        slopes += torch.autograd.grad(loss, list(answers.logps.values()), allow_unused=True, materialize_grads=True)
    return torch.cat(slopes)


class _Answers:
    """Log-probs and other quantities of responses, the same for whoever asks again."""

    def __init__(self, width: int, draw: int, nats: float, own: Sequence[Responses]):
        self.width, self.draw, self.nats = width, draw, nats
        self.logps = {id(r.lengths): self._normal(r, 0, len(r.lengths)).requires_grad_() for r in own}
        """Of the policy, by the tensor of lengths, which copies of a batch share."""

    def _normal(self, responses: Responses, what: int, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.draw + 10 * len(responses.targets) + what)
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(responses.lengths.device)

    def response_logps(self, responses: Responses, wanted: Needs = SUMS_OF_BOTH) -> ResponseLogps:
        r, prompts, number = responses, len(responses.prompt_end), len(responses.lengths)
        ours = self.logps[id(r.lengths)] if id(r.lengths) in self.logps else self._normal(r, 0, number)
        constants = self.nats * self._normal(r, 1, prompts)
        theirs = ours.detach() + 3 * self._normal(r, 2, number) + constants[r.prompt_index]
        sizes = {"token": len(r.targets), "response": number, "prompt": prompts}
        outputs = {
            name: torch.sigmoid(self._normal(r, 3, sizes[AXIS[name]], *([self.width] if name in STATES else [])))
            for name in sorted(wanted.policy)
        }
        if "token_logps" in outputs:
            outputs["token_logps"] = (ours / r.lengths)[r.response_index]
        return ResponseLogps(
            ours, r.lengths, r.prompt_index, theirs, r.rewards, outputs, response_index=r.response_index
        )
