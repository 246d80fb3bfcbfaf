"""Scored lists of K responses."""

from collections.abc import Callable

import torch
from by_hand.answers import Answer, PlainStep
from by_hand.case import Expected, Sides, case, expected, log_sigmoid, mean
from by_hand.pairs import scaled
from by_hand.units import lists
from torch import Tensor

from upo.methods import EXOListwise, InfoNCA, NCAListwise


def of_scores(answers: list[Answer]) -> Sides:
    """The best and the worst; couples of unequal scores."""
    scores = [y.response.score for y in answers]
    best, worst = ([y for y in answers if y.response.score == end(scores)] for end in (max, min))
    return best, worst, [(x, y) for x in answers for y in answers if x.response.score > y.response.score]


def of_lists(step: PlainStep, loss: Callable[[Tensor, Tensor], Tensor], beta: float, temperature: float) -> Expected:
    """The mean over prompts of `loss(rewards, q)`, q = softmax(scores / temperature) [K]."""
    values = []
    for unit in step.units:
        weights = torch.tensor([y.response.score / temperature for y in unit.answers]).exp()
        values.append(loss(torch.stack([beta * y.r for y in unit.answers]), weights / weights.sum()))
    return expected(values, reward=scaled(beta), sides=[of_scores(unit.answers) for unit in step.units])


@case(EXOListwise, lists, beta=0.3, temperature=0.75)
def exo_listwise(step: PlainStep, beta: float, temperature: float) -> Expected:
    """The reverse KL from the policy's distribution over the list to q."""

    def loss(rewards: Tensor, q: Tensor) -> Tensor:
        p = rewards.exp() / rewards.exp().sum()
        return (p * (p / q).log()).sum()

    return of_lists(step, loss, beta, temperature)


@case(NCAListwise, lists, beta=0.3, temperature=0.75)
def nca_listwise(step: PlainStep, beta: float, temperature: float) -> Expected:
    def loss(rewards: Tensor, q: Tensor) -> Tensor:
        return -sum(w * log_sigmoid(x) for w, x in zip(q, rewards, strict=True)) - mean(log_sigmoid(-rewards))

    return of_lists(step, loss, beta, temperature)


@case(InfoNCA, lists, beta=0.3, temperature=0.75)
def info_nca(step: PlainStep, beta: float, temperature: float) -> Expected:
    return of_lists(step, lambda rewards, q: -(q * rewards.log_softmax(0)).sum(), beta, temperature)
