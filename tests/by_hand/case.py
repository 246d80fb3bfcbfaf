"""What a method must come to in a step: the registry of references by hand, and what they share.

A reference is a function of a `PlainStep` and the method's options that returns `Expected`:

    @case(DPO, pairs, beta=0.3, label_smoothing=0.2)
    def dpo(step: PlainStep, beta: float, label_smoothing: float) -> Expected:
        def loss(won: Answer, lost: Answer) -> Tensor:
            z = beta * (won.r - lost.r)
            return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)

        return of_pairs(step, loss, reward=lambda y: beta * y.r)

It follows the paper's equation, one response at a time, and calls nothing of the method: neither its loss function nor
`upo.models.logps`. A class may have several cases.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from by_hand.answers import Answer, PlainStep, Unit
from torch import Tensor, nn

from upo.data.units import Unit as TokenUnit
from upo.methods.common.base import Method

Values = list[Any]
"""What is averaged: numbers, or couples of a number and its weight."""
Reward = Callable[[Answer], Tensor]


def means(values: Mapping[str, Values]) -> dict[str, float]:
    """The weighted mean of each list; an empty one has none."""
    found = {}
    for name, every in values.items():
        weighted = [x if isinstance(x, tuple) else (x, 1.0) for x in every]
        if weighted:
            found[name] = sum(number(x) * w for x, w in weighted) / sum(w for _, w in weighted)
    return found


@frozen(eq=False)
class Expected:
    """What a step must come to."""

    loss: Tensor
    """The total, whose gradient is the step's."""
    count: int
    """Pairs, responses or tokens that its mean is over: the step's weight in a mean over several."""
    values: dict[str, Values]
    """What is logged, by metric, of every pair, response or token."""
    reward: Reward | None
    summary: Callable[[Mapping[str, Values]], dict[str, float]]
    """From the values of one or more steps to the metrics."""


def nothing(method: Any, units: list[TokenUnit]) -> None:
    """No preparation."""


def in_a_row(unit: Unit) -> list[Answer]:
    """The answers in the order of a batch's rows."""
    return [y for part in (unit.answers, *unit.contexts) for y in part]


@frozen(eq=False)
class ByHand:
    """A method with options, data and its reference by hand."""

    kind: type[Method]
    options: dict[str, Any]
    units: Callable[[], list[TokenUnit]]
    by_hand: Callable[..., Expected]
    prepare: Callable[[Any, list[TokenUnit]], None] = field(default=nothing)
    """Sets what comes from before the first step."""
    rows: Callable[[Unit], list[Answer]] = field(default=in_a_row)

    def expected(self, step: PlainStep) -> Expected:
        return self.by_hand(step, **self.options)


BY_HAND: dict[type[Method], list[ByHand]] = {}


def case(
    kind: type[Method],
    units: Callable[[], list[TokenUnit]],
    *,
    prepare: Callable[[Any, list[TokenUnit]], None] = nothing,
    rows: Callable[[Unit], list[Answer]] = in_a_row,
    **options: Any,
) -> Callable[[Callable[..., Expected]], Callable[..., Expected]]:
    """Names the function below it the reference of a method; all options are arguments of both."""

    def add(by_hand: Callable[..., Expected]) -> Callable[..., Expected]:
        BY_HAND.setdefault(kind, []).append(ByHand(kind, options, units, by_hand, prepare, rows))
        return by_hand

    return add


# ---- mathematics -----------------------------------------------------------------------------------------------------


def number(x: Any) -> float:
    """Without its gradient."""
    return float(x.detach()) if isinstance(x, Tensor) else float(x)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def log_sigmoid(x: Tensor) -> Tensor:
    return torch.log(sigmoid(x))


def log_odds(a: Tensor) -> Tensor:
    """log(p / (1 - p)), p = exp(a)."""
    return torch.log(torch.exp(a) / (1 - torch.exp(a)))


def mean(values: Sequence[Any]) -> Any:
    return sum(values) / len(values)


def total(values: Iterable[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in values]).sum()


def forward_kl(y: Answer) -> Tensor:
    """KL(reference || policy) of each token's distribution [T], in nats."""
    return (y.reference.every.exp() * (y.reference.every - y.policy.every)).sum(-1)


def reverse_kl(y: Answer) -> Tensor:
    """KL(policy || reference) of each token's distribution [T], in nats."""
    return (y.policy.every.exp() * (y.policy.every - y.reference.every)).sum(-1)


def value(head: nn.Module, state: Tensor, masks: Sequence[Tensor | float] = (1.0, 1.0)) -> Tensor:
    """V of a state [D] by a head of two hidden layers; nothing flows back into the state."""
    first, second, last = (layer for layer in head.modules() if isinstance(layer, nn.Linear))
    x = state.detach()
    for layer, mask in zip((first, second), masks, strict=True):
        x = ((layer.weight @ x + layer.bias) * mask).relu()
    return (last.weight @ x + last.bias)[0]


# ---- families --------------------------------------------------------------------------------------------------------

Sides = tuple[list[Answer], list[Answer], list[tuple[Answer, Answer]]]
"""A prompt's chosen and rejected answers, and its couples of a better and a worse one."""


def couples(pairs: Iterable[tuple[Answer, Answer]]) -> list[Sides]:
    """Of prompts that have one chosen and one rejected answer each."""
    return [([won], [lost], [(won, lost)]) for won, lost in pairs]


def of_labels(step: PlainStep) -> list[Sides]:
    sides = []
    for unit in step.units:
        good, bad = [y for y in unit.answers if y.good], [y for y in unit.answers if not y.good]
        sides.append((good, bad, [(won, lost) for won in good for lost in bad]))
    return sides


def preferences(sides: Sequence[Sides], reward: Reward) -> dict[str, Values]:
    """The metrics of all methods that know chosen and rejected answers."""
    found: dict[str, Values] = defaultdict(list)
    for chosen, rejected, couples in sides:
        for name, group in (("chosen", chosen), ("rejected", rejected)):
            found[f"rewards/{name}"] += [reward(y) for y in group]
            found[f"logps/{name}"] += [y.pi for y in group]
        for better, worse in couples:
            margin = number(reward(better) - reward(worse))
            found["rewards/margins"].append(margin)
            found["rewards/accuracies"].append(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0)
            found["rewards/ties"].append(float(margin == 0))
    return found


def expected(
    terms: Mapping[str, Values] | Values,
    *,
    reward: Reward | None = None,
    sides: Sequence[Sides] = (),
    scales: Mapping[str, float] = {},
    metrics: Mapping[str, Values] = {},
    silent: Collection[str] = (),
    count: int | None = None,
    summary: Callable[[Mapping[str, Values]], dict[str, float]] = means,
) -> Expected:
    """A sum of terms, each the mean of its values.

    Args:
        terms: values by name, which are logged as `loss/<name>`; of a single term only the values.
        reward: of an answer; null where the method has none.
        sides: for the metrics of chosen and rejected answers; empty for methods without.
        scales: factors of terms; 1 where none is named.
        metrics: further values to log.
        silent: terms that are not logged by themselves.
        count: what the first term is averaged over, where it has not as many values.
    """
    named = terms if isinstance(terms, Mapping) else {"": terms}
    loss = total(scales.get(name, 1.0) * mean(values) for name, values in named.items())
    count = len(next(iter(named.values()))) if count is None else count
    values = {"loss": [(loss, count)], **metrics}
    values |= {f"loss/{name}": x for name, x in named.items() if name and name not in silent}
    if sides:
        assert reward is not None
        values |= preferences(sides, reward)
    return Expected(loss, count, values, reward, summary)


def of_pairs(
    step: PlainStep,
    loss: Callable[[Answer, Answer], Tensor | dict[str, Tensor]],
    reward: Reward,
    pairs: Sequence[tuple[Answer, Answer]] | None = None,
    **options: Any,
) -> Expected:
    """The mean over pairs of `loss(chosen, rejected)`, a number or numbers by term."""
    pairs = step.pairs if pairs is None else pairs
    found = [loss(won, lost) for won, lost in pairs]
    terms = {name: [x[name] for x in found] for name in found[0]} if isinstance(found[0], dict) else found
    return expected(terms, reward=reward, sides=couples(pairs), **options)
