"""Pairs that bring something along: scores, soft labels, win rates, copies, a partner, further prompts."""

from collections.abc import Callable
from functools import partial

import torch
from by_hand.answers import Answer, PlainStep, Unit
from by_hand.case import Expected, Reward, case, couples, expected, log_sigmoid, of_pairs, sigmoid, total
from by_hand.pairs import scaled, smoothed
from by_hand.units import degraded, joint, pairs, shown
from torch import Tensor

from upo.methods import (
    DOVE,
    GDPO,
    GIPO,
    GROPO,
    ODPO,
    SRPO,
    SoftCDPO,
    SoftCIPO,
    SPODegree,
    SPPOHard,
    SPPOSoft,
    StepAPO,
)
from upo.methods.common.ranges import FlipRate


def gap(won: Answer, lost: Answer) -> float:
    """By how much the chosen response's score is higher."""
    return won.response.score - lost.response.score


@case(ODPO, pairs, beta=0.3, alpha=0.6)
def odpo(step: PlainStep, beta: float, alpha: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        return -log_sigmoid(beta * (won.r - lost.r) - alpha * torch.tensor(gap(won, lost)).log())

    return of_pairs(step, loss, scaled(beta))


@case(StepAPO, pairs, beta=0.2, label_smoothing=FlipRate(0.2), alpha=0.6)
def step_apo(step: PlainStep, beta: float, label_smoothing: float, alpha: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        return smoothed(beta * (won.r - lost.r) - alpha * gap(won, lost), label_smoothing)

    return of_pairs(step, loss, scaled(beta))


# ---- soft labels: p that the first response is preferred -------------------------------------------------------------


def of_soft_labels(step: PlainStep, loss: Callable[[Tensor, float], Tensor], reward: Reward) -> Expected:
    """The mean of `loss(r_w - r_l, p)`."""
    known = zip(step.units, step.pairs, strict=True)
    values = [loss(won.r - lost.r, unit.example.soft_label) for unit, (won, lost) in known]
    return expected(values, reward=reward, sides=couples(step.pairs))


@case(SoftCDPO, pairs, beta=0.3)
def soft_cdpo(step: PlainStep, beta: float) -> Expected:
    return of_soft_labels(step, lambda d, p: smoothed(beta * d, 1 - p), scaled(beta))


@case(SoftCIPO, pairs, tau=0.3)
def soft_cipo(step: PlainStep, tau: float) -> Expected:
    return of_soft_labels(step, lambda d, p: (d - (2 * p - 1) / (2 * tau)) ** 2, scaled(tau))


@case(GDPO, pairs, beta=0.4)
def gdpo(step: PlainStep, beta: float) -> Expected:
    return of_soft_labels(step, lambda d, p: -log_sigmoid(beta * (2 * p - 1) * d), scaled(beta))


@case(GIPO, pairs, tau=0.3)
def gipo(step: PlainStep, tau: float) -> Expected:
    return of_soft_labels(step, lambda d, p: ((2 * p - 1) * d - 1 / (2 * tau)) ** 2, scaled(tau))


@case(GROPO, pairs, beta=0.4, alpha=3.0)
def gropo(step: PlainStep, beta: float, alpha: float) -> Expected:
    def loss(d: Tensor, p: float) -> Tensor:
        z = beta * (2 * p - 1) * d
        logistic, bounded = 4 * alpha / (1 + alpha) ** 2, 4 * alpha**2 / (1 + alpha) ** 2
        return logistic * -log_sigmoid(z) + bounded * sigmoid(-z)

    return of_soft_labels(step, loss, scaled(beta))


# ---- probabilities of winning ----------------------------------------------------------------------------------------


def sppo_loss(beta: float, won: Answer, lost: Answer, p_won: float, p_lost: float) -> Tensor:
    return (won.r - (p_won - 0.5) / beta) ** 2 + (lost.r - (p_lost - 0.5) / beta) ** 2


@case(SPPOHard, pairs, beta=0.3)
def sppo_hard(step: PlainStep, beta: float) -> Expected:
    return of_pairs(step, partial(sppo_loss, beta, p_won=1.0, p_lost=0.0), scaled(beta))


@case(SPPOSoft, pairs, beta=0.3)
def sppo_soft(step: PlainStep, beta: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        return sppo_loss(beta, won, lost, *(y.response.attributes["win_rate"] for y in (won, lost)))

    return of_pairs(step, loss, scaled(beta))


# ---- more prompts or more responses ----------------------------------------------------------------------------------


def joint_pair(unit: Unit) -> list[Answer]:
    """A response and its partner, each to its own prompt, the higher score first."""
    return sorted([*unit.answers, *unit.partner], key=lambda y: -y.response.score)


@case(DOVE, joint, rows=joint_pair, beta=0.3, label_smoothing=FlipRate(0.2))
def dove(step: PlainStep, beta: float, label_smoothing: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        return smoothed(beta * (won.r - lost.r), label_smoothing)

    return of_pairs(step, loss, scaled(beta), [tuple(joint_pair(unit)) for unit in step.units])


@case(SRPO, shown, beta=0.3, alpha=0.3)
def srpo(step: PlainStep, beta: float, alpha: float) -> Expected:
    """Q(y'|y) is the log-ratio of y' where y is shown."""
    generator, improver = [], []
    for unit in step.units:
        r_w, r_l = (y.r for y in unit.answers)
        (ww, lw), (wl, ll) = ((y.r for y in answers) for answers in unit.contexts)  # of y' = w, l, shown w, then l
        bracket = beta * (r_w - r_l) + beta / 2 * (wl - ww + ll - lw)
        generator.append((1 / 2 - bracket) ** 2)
        improver.append((1 / 2 - beta * (wl - ll)) ** 2 + (1 / 2 - beta * (ww - lw)) ** 2)
    return expected(
        {"generator": generator, "improver": improver},
        reward=scaled(beta),
        sides=couples(step.pairs),
        scales={"generator": alpha, "improver": 1 - alpha},
    )


@case(SPODegree, degraded, beta=0.3, label_smoothing=FlipRate(0.2), gamma=0.4)
def spo_degree(step: PlainStep, beta: float, label_smoothing: float, gamma: float) -> Expected:
    """CE_w + CE_l, each the mean over a response and its copies, from the state that predicts the last token."""
    head, classified, right = step.method.degree_head, [], []
    for unit in step.units:
        entropies: list[list[Tensor]] = [[], []]
        for place, y in enumerate(unit.answers):
            known = y.response.attributes
            degree, owner = (0, place) if place < 2 else (known["degree"], known["copy_of"])
            logits = head.weight @ y.policy.states[-1] + head.bias
            entropies[owner].append(-logits.log_softmax(0)[degree])
            right.append(float(logits.argmax() == degree))
        classified.append(sum(total(x) / len(x) for x in entropies))
    return expected(
        {
            "preference": [smoothed(beta * (won.r - lost.r), label_smoothing) for won, lost in step.pairs],
            "degree": classified,
        },
        reward=scaled(beta),
        sides=couples(step.pairs),
        scales={"degree": gamma},
        metrics={"degree/accuracies": right},
    )
