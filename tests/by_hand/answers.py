"""One response at a time: what the plain transformers models of policy and reference say of it.

Nothing here knows layouts, micro-batches or this project's own log-probs: a response stands alone behind its prompt.
"""

import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from attrs import define, field, frozen
from torch import Tensor

from upo.data import units as tokens
from upo.data.example import Example, Response
from upo.methods.common.base import Method


@frozen(eq=False)
class Scores:
    """What a model says of a response of T tokens."""

    every: Tensor
    """Log-probs of the whole vocabulary [T, V], in nats."""
    logps: Tensor
    """Those of the response's own tokens [T]."""
    layers: Tensor
    """States of every layer that predict the tokens [T, L, D]; the last one is what the head reads."""
    prompt: Tensor
    """The last layer's states at the prompt's tokens [P, D]."""

    @property
    def states(self) -> Tensor:
        """The last layer's [T, D]."""
        return self.layers[:, -1]


class PlainModel:
    """A copy of a transformers model with transformers' own attention; remembers what it was asked."""

    def __init__(self, model: torch.nn.Module, learns: bool):
        self.model = copy.deepcopy(model).requires_grad_(learns)
        self.model.set_attn_implementation("sdpa")
        self.known: dict[tuple[tuple[int, ...], tuple[int, ...]], Scores] = {}

    def __call__(self, prompt: Sequence[int], ids: Sequence[int]) -> Scores:
        key = tuple(prompt), tuple(ids)
        if key not in self.known:
            self.known[key] = self._scores(*key)
        return self.known[key]

    def _scores(self, prompt: tuple[int, ...], ids: tuple[int, ...]) -> Scores:
        whole = torch.tensor([[*prompt, *ids]])
        out = self.model(input_ids=whole, use_cache=False, output_hidden_states=True)
        own = slice(len(prompt) - 1, len(prompt) + len(ids) - 1)
        every = out.logits[0, own].log_softmax(-1)
        layers = torch.stack(out.hidden_states[1:], 2)[0]
        logps = torch.stack([every[t, token] for t, token in enumerate(ids)])
        return Scores(every, logps, layers[own], layers[: len(prompt), -1])


@frozen(eq=False)
class Answer:
    """A response to a prompt, with its annotations, under policy and reference."""

    response: Response
    ids: Sequence[int]
    policy: Scores
    reference: Scores

    @property
    def n(self) -> int:
        """|y|, tokens."""
        return len(self.ids)

    @cached_property
    def pi(self) -> Tensor:
        """log policy(y|x), in nats."""
        return self.policy.logps.sum()

    @cached_property
    def ref(self) -> Tensor:
        """log reference(y|x), in nats."""
        return self.reference.logps.sum()

    @cached_property
    def r(self) -> Tensor:
        """The log-ratio of both."""
        return self.pi - self.ref

    @property
    def a(self) -> Tensor:
        """log policy(y|x) / |y|."""
        return self.pi / self.n

    @property
    def rho(self) -> Tensor:
        """Log-ratio of each token [T]."""
        return self.policy.logps - self.reference.logps

    @property
    def good(self) -> bool:
        """Whether it is labelled desirable."""
        return bool(self.response.desirable)

    def objective(self, weights: dict[str, float]) -> float:
        """R = sum_i w_i r_i."""
        return sum(w * self.response.rewards[name] for name, w in weights.items())


@frozen(eq=False)
class Unit:
    """A prompt and its answers, with what the batch type brings along."""

    example: Example
    answers: list[Answer]
    contexts: list[list[Answer]]
    """Answers under further prompts, prompt by prompt."""
    borrowed: list[Answer]
    """The partner's responses under this prompt."""
    partner: list[Answer]
    """The partner's responses under its own prompt."""


@define(eq=False)
class PlainStep:
    """One optimizer step as a formula sees it: units in a row, no micro-batches."""

    units: list[Unit]
    number: int
    """Optimizer steps before it."""
    training: bool
    method: Method
    """For the parameters of its heads, and nothing else that a formula could be read from."""
    so_far: "list[PlainStep]"
    """All training steps up to this one, itself included."""
    seen: dict[str, set[bool]] = field(repr=False)
    """By name of a kink which of its sides the data has met."""

    @property
    def answers(self) -> list[Answer]:
        return [y for unit in self.units for y in unit.answers]

    @property
    def pairs(self) -> list[tuple[Answer, Answer]]:
        """Chosen and rejected."""
        return [(unit.answers[0], unit.answers[1]) for unit in self.units]

    def largest(self, a: Tensor, b: float | Tensor, kink: str) -> Tensor:
        """max(a, b) by an `if`; the data must show both sides of a kink."""
        self.seen.setdefault(kink, set()).add(bool(a > b))
        return a if a > b else torch.as_tensor(b, dtype=torch.float64)

    def smallest(self, a: Tensor, b: float | Tensor, kink: str) -> Tensor:
        return -self.largest(-a, -b, kink)


class Reader:
    """Turns the data's units into answers."""

    def __init__(self, policy: torch.nn.Module, reference: torch.nn.Module):
        self.policy, self.reference = PlainModel(policy, learns=True), PlainModel(reference, learns=False)

    def answers(self, prompt: Sequence[int], group: tokens.Group, example: Example) -> list[Answer]:
        """A group's responses behind a prompt; a rationale has no annotations."""
        known = [Response("so")] if group.role == "rationale" else example.responses
        return [
            Answer(response, ids, self.policy(prompt, ids), self.reference(prompt, ids))
            for response, ids in zip(known, group.responses, strict=True)
        ]

    def unit(self, unit: tokens.Unit, donor: tokens.Unit | None) -> Unit:
        """A unit as it is before it is joined with its partner, and that partner."""
        own, *contexts = (self.answers(group.prompt, group, unit.example) for group in unit.groups)
        borrowed = [donor.groups[0], donor.example] if donor else []
        return Unit(
            unit.example,
            own,
            contexts,
            self.answers(unit.prompt, *borrowed) if donor else [],
            self.answers(donor.prompt, *borrowed) if donor else [],
        )
