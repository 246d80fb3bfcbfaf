"""Pairs against a reference: losses of another shape than the logistic one, and a sum of several."""

from functools import partial

import torch
from by_hand.answers import Answer, PlainStep
from by_hand.case import Expected, case, log_sigmoid, of_pairs, sigmoid
from by_hand.pairs import scaled, smoothed
from by_hand.units import pairs
from torch import Tensor

from upo.methods import (
    DPO,
    EXO,
    IPO,
    MPO,
    NCA,
    APODown,
    APOZero,
    CalDPO,
    DiscoPOP,
    FlexDPO,
    IPOAveraged,
    RSOHinge,
)
from upo.methods.common.ranges import FlipRate, Smoothing


@case(IPO, pairs, tau=0.3)
def ipo(step: PlainStep, tau: float) -> Expected:
    return of_pairs(step, lambda won, lost: (won.r - lost.r - 1 / (2 * tau)) ** 2, scaled(tau))


@case(IPOAveraged, pairs, tau=0.6)
def ipo_averaged(step: PlainStep, tau: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        return (won.r / won.n - lost.r / lost.n - 1 / (2 * tau)) ** 2

    return of_pairs(step, loss, lambda y: tau * y.r / y.n)


@case(APOZero, pairs, beta=0.4)
def apo_zero(step: PlainStep, beta: float) -> Expected:
    return of_pairs(step, lambda won, lost: 1 - sigmoid(beta * won.r) + sigmoid(beta * lost.r), scaled(beta))


@case(APODown, pairs, beta=0.4)
def apo_down(step: PlainStep, beta: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        return sigmoid(beta * won.r) + 1 - sigmoid(beta * won.r - beta * lost.r)

    return of_pairs(step, loss, scaled(beta))


@case(CalDPO, pairs, beta=0.25, calibration_weight=0.5)
def cal_dpo(step: PlainStep, beta: float, calibration_weight: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> dict[str, Tensor]:
        calibration = (won.r - 1 / (2 * beta)) ** 2 + (lost.r + 1 / (2 * beta)) ** 2
        return {"preference": -log_sigmoid(won.r - lost.r), "calibration": calibration}

    return of_pairs(step, loss, lambda y: y.r, scales={"calibration": calibration_weight})


@case(DiscoPOP, pairs, beta=0.3, tau=0.4)
def discopop(step: PlainStep, beta: float, tau: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        z = beta * (won.r - lost.r)
        m = sigmoid(z / tau)
        return (1 - m) * -log_sigmoid(z) + m * torch.exp(-z)

    return of_pairs(step, loss, scaled(beta))


@case(EXO, pairs, beta=0.3, eps=Smoothing(0.1))
def exo(step: PlainStep, beta: float, eps: float) -> Expected:
    """KL of what the policy says of the pair to the smoothed label."""

    def loss(won: Answer, lost: Answer) -> Tensor:
        p = torch.stack([beta * won.r, beta * lost.r]).softmax(0)
        return (p * (p.log() - torch.tensor([1 - eps, eps]).log())).sum()

    return of_pairs(step, loss, scaled(beta))


def nca_loss(beta: float, won: Answer, lost: Answer) -> Tensor:
    chosen, rejected = beta * won.r, beta * lost.r
    return -log_sigmoid(chosen) - log_sigmoid(-chosen) / 2 - log_sigmoid(-rejected) / 2


@case(NCA, pairs, beta=0.3)
def nca(step: PlainStep, beta: float) -> Expected:
    return of_pairs(step, partial(nca_loss, beta), scaled(beta))


MIXED = {
    "liked": partial(DPO, beta=0.3, label_smoothing=FlipRate(0.1)),
    "fine": partial(NCA, beta=0.2),
    "plain": partial(FlexDPO, sft_weight=0.6),
    "far": IPO,
}


@case(MPO, pairs, losses=MIXED, weights={"liked": 0.7, "fine": 0.4, "plain": 0.2}, nll_weight=0.5)
def mpo(step: PlainStep, losses: dict, weights: dict[str, float], nll_weight: float) -> Expected:
    """Flex-DPO, which is a sum itself, and IPO have their default betas; the reward is DPO's, which comes first."""

    def loss(won: Answer, lost: Answer) -> dict[str, Tensor]:
        return {
            "liked": smoothed(0.3 * (won.r - lost.r), 0.1),
            "fine": nca_loss(0.2, won, lost),
            "plain": -log_sigmoid(0.1 * won.r - 0.08 * lost.r),
            "plain/nll": -won.a,
            "far": (won.r - lost.r - 5) ** 2,
            "nll": -won.a,
        }

    scales = weights | {"plain/nll": 0.2 * 0.6, "nll": nll_weight}
    return of_pairs(step, loss, scaled(0.3), scales=scales, silent={"plain/nll"})


@case(RSOHinge, pairs, gamma=0.4)
def rso_hinge(step: PlainStep, gamma: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        return step.largest(1 - gamma * (won.r - lost.r), 0.0, "the hinge")

    return of_pairs(step, loss, scaled(gamma))
