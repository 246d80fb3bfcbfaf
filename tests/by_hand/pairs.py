"""Pairs against a reference: DPO, and logistic losses of other margins than DPO's."""

import torch
from by_hand.answers import Answer, PlainStep
from by_hand.case import Expected, Reward, case, log_sigmoid, number, of_pairs
from by_hand.units import pairs
from torch import Tensor

from upo.functional.divergences import Alpha, ForwardKL
from upo.methods import (
    DPO,
    DPOP,
    FDPO,
    LNDPO,
    LNDPOP,
    MODPO,
    VPO,
    CurryDPO,
    DPOGamma,
    FlexDPO,
    HybridDPO,
    LengthRegularizedDPO,
    RegularizedPO,
    RobustDPO,
    StepDPO,
)
from upo.methods.common.ranges import FlipRate


def scaled(beta: float) -> Reward:
    """beta log(policy / reference)."""
    return lambda y: beta * y.r


def smoothed(z: Tensor, label_smoothing: float) -> Tensor:
    """Conservative DPO: labels are wrong with that probability."""
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


@case(DPO, pairs, beta=0.3, label_smoothing=FlipRate(0.2))
@case(CurryDPO, pairs, beta=0.4, label_smoothing=FlipRate(0.1))
@case(StepDPO, pairs, beta=0.7, label_smoothing=FlipRate(0.3))
def dpo(step: PlainStep, beta: float, label_smoothing: float) -> Expected:
    return of_pairs(step, lambda won, lost: smoothed(beta * (won.r - lost.r), label_smoothing), scaled(beta))


@case(RobustDPO, pairs, beta=0.3, flip_rate=FlipRate(0.2))
def robust_dpo(step: PlainStep, beta: float, flip_rate: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        z = beta * (won.r - lost.r)
        return (-(1 - flip_rate) * log_sigmoid(z) + flip_rate * log_sigmoid(-z)) / (1 - 2 * flip_rate)

    return of_pairs(step, loss, scaled(beta))


@case(DPOGamma, pairs, beta=0.3, gamma=0.7)
def dpo_gamma(step: PlainStep, beta: float, gamma: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        return -log_sigmoid(beta * ((won.pi - lost.pi) - gamma * (won.ref - lost.ref)))

    return of_pairs(step, loss, lambda y: beta * (y.pi - gamma * y.ref))


@case(DPOP, pairs, beta=0.2, lam=1.5)
def dpop(step: PlainStep, beta: float, lam: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        penalty = step.largest(won.ref - won.pi, 0.0, "the chosen response became less likely")
        return -log_sigmoid(beta * (won.r - lost.r - lam * penalty))

    return of_pairs(step, loss, scaled(beta))


@case(HybridDPO, pairs, beta=0.3)
def hybrid_dpo(step: PlainStep, beta: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        margin = step.largest(won.ref - lost.ref, 0.0, "the reference prefers the chosen response")
        return -log_sigmoid(beta * (won.pi - lost.pi - margin))

    return of_pairs(step, loss, scaled(beta))


@case(LengthRegularizedDPO, pairs, beta=0.3, alpha=0.25)
def length_regularized_dpo(step: PlainStep, beta: float, alpha: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        return -log_sigmoid(beta * (won.r - lost.r) + alpha * (won.n - lost.n))

    return of_pairs(step, loss, scaled(beta))


@case(LNDPO, pairs, beta=3.0)
def ln_dpo(step: PlainStep, beta: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        return -log_sigmoid(beta * (won.r / won.n - lost.r / lost.n))

    return of_pairs(step, loss, lambda y: beta * y.r / y.n)


@case(LNDPOP, pairs, beta=3.0, lam=1.5)
def ln_dpop(step: PlainStep, beta: float, lam: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        penalty = step.largest((won.ref - won.pi) / won.n, 0.0, "the chosen response became less likely")
        return -log_sigmoid(beta * (won.r / won.n - lost.r / lost.n - lam * penalty))

    return of_pairs(step, loss, lambda y: beta * y.r / y.n)


def f_dpo(step: PlainStep, beta: float, score: Reward) -> Expected:
    """The score is f'(u), u = policy / reference, up to constants."""
    return of_pairs(step, lambda won, lost: -log_sigmoid(beta * (score(won) - score(lost))), lambda y: beta * score(y))


@case(FDPO, pairs, beta=0.4, divergence=Alpha(0.3))
def f_dpo_alpha(step: PlainStep, beta: float, divergence: Alpha) -> Expected:
    return f_dpo(step, beta, lambda y: (1 - torch.exp(y.r) ** -divergence.alpha) / divergence.alpha)


@case(FDPO, pairs, beta=0.3)
def f_dpo_jensen_shannon(step: PlainStep, beta: float) -> Expected:
    return f_dpo(step, beta, lambda y: torch.log(2 * torch.exp(y.r) / (1 + torch.exp(y.r))))


@case(FDPO, pairs, beta=0.2, divergence=ForwardKL())
def f_dpo_forward(step: PlainStep, beta: float, divergence: ForwardKL) -> Expected:
    return f_dpo(step, beta, lambda y: -1 / torch.exp(y.r))


@case(FlexDPO, pairs, beta_plus=0.4, beta_minus=0.2, sft_weight=0.3)
def flex_dpo(step: PlainStep, beta_plus: float, beta_minus: float, sft_weight: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> dict[str, Tensor]:
        return {"preference": -log_sigmoid(beta_plus * won.r - beta_minus * lost.r), "nll": -won.a}

    return of_pairs(step, loss, scaled(beta_plus), scales={"nll": sft_weight})


@case(MODPO, pairs, beta=0.3, preference_weight=0.75, reward_weights={"clear": 0.5, "safe": -1.5})
def modpo(step: PlainStep, beta: float, preference_weight: float, reward_weights: dict[str, float]) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        margin = won.objective(reward_weights) - lost.objective(reward_weights)
        return -log_sigmoid((beta * (won.r - lost.r) - margin) / preference_weight)

    def left(y: Answer) -> float:
        """The users' reward: what the auxiliary ones leave of the whole."""
        return number((beta * y.r - y.objective(reward_weights)) / preference_weight)

    metrics: dict[str, list[float]] = {
        f"preference_rewards/{name}": [] for name in ("chosen", "rejected", "accuracies", "margins")
    }
    for won, lost in step.pairs:
        gap = left(won) - left(lost)
        accuracy = 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0
        for name, x in zip(metrics, (left(won), left(lost), accuracy, gap), strict=True):
            metrics[name].append(x)
    return of_pairs(step, loss, scaled(beta), metrics=metrics)


@case(RegularizedPO, pairs, beta=0.3, eta=0.2, nll_per_token=False, label_smoothing=FlipRate(0.1))
@case(RegularizedPO, pairs, beta=0.3, eta=0.2, nll_per_token=True)
def regularized_po(
    step: PlainStep, beta: float, eta: float, nll_per_token: bool, label_smoothing: float = 0.0
) -> Expected:
    """Of the likelihood beta eta a sum, or eta a mean token."""

    def loss(won: Answer, lost: Answer) -> dict[str, Tensor]:
        nll = -won.a if nll_per_token else -won.pi
        return {"preference": smoothed(beta * (won.r - lost.r), label_smoothing), "nll": nll}

    return of_pairs(step, loss, scaled(beta), scales={"nll": eta if nll_per_token else beta * eta})


@case(VPO, pairs, beta=0.3, alpha=0.2)
def vpo(step: PlainStep, beta: float, alpha: float) -> Expected:
    """Offline: pessimism, the chosen responses stand for the calibration policy's."""

    def loss(won: Answer, lost: Answer) -> Tensor:
        return -log_sigmoid(beta * (won.r - lost.r)) - alpha * beta * won.r

    return of_pairs(step, loss, scaled(beta))
