"""Pairs and labels whose losses depend on the whole step: sorted, with reference points, with running means."""

import math

import torch
from by_hand.answers import PlainStep
from by_hand.case import (
    Expected,
    case,
    couples,
    expected,
    log_sigmoid,
    mean,
    number,
    of_labels,
    of_pairs,
    sigmoid,
    total,
)
from by_hand.pairs import scaled, smoothed
from by_hand.units import labelled, pairs
from torch import Tensor

from upo.data.units import Unit
from upo.methods import BCO, KTO, AOTPaired, AOTUnpaired, BetaDPO, KTOPair, KTOZero
from upo.methods.common.ranges import FlipRate, Share


@case(AOTPaired, pairs, beta=0.3, label_smoothing=FlipRate(0.2))
def aot_paired(step: PlainStep, beta: float, label_smoothing: float) -> Expected:
    """Margins of the policy against the reference's of the same rank."""
    u = sorted((won.pi - lost.pi for won, lost in step.pairs), key=number)
    v = sorted((won.ref - lost.ref for won, lost in step.pairs), key=number)
    values = [smoothed(beta * (a - b), label_smoothing) for a, b in zip(u, v, strict=True)]
    return expected(values, reward=scaled(beta), sides=couples(step.pairs))


@case(AOTUnpaired, labelled, beta=0.3, label_smoothing=FlipRate(0.2))
def aot_unpaired(step: PlainStep, beta: float, label_smoothing: float) -> Expected:
    """Unequal numbers: each response as often as makes both sides equally many."""
    good, bad = (sorted((y.r for y in step.answers if y.good is side), key=number) for side in (True, False))
    assert len(good) != len(bad)
    every = math.lcm(len(good), len(bad))
    u, v = ([r for r in side for _ in range(every // len(side))] for side in (good, bad))
    values = [smoothed(beta * (a - b), label_smoothing) for a, b in zip(u, v, strict=True)]
    return expected(values, reward=scaled(beta), sides=of_labels(step), count=len(step.units))


def kto_values(step: PlainStep, z0: Tensor, beta: float, desirable: float, undesirable: float) -> list[Tensor]:
    return [
        desirable * (1 - sigmoid(beta * (y.r - z0))) if y.good else undesirable * (1 - sigmoid(beta * (z0 - y.r)))
        for y in step.answers
    ]


def reference_point(step: PlainStep) -> Tensor:
    """max(0, mean log-ratio of the partners' responses), without gradient."""
    borrowed = [y.r for unit in step.units for y in unit.borrowed]
    return step.largest(mean(borrowed), 0.0, "z0").detach()


@case(KTO, labelled, beta=0.3, desirable_weight=0.7, undesirable_weight=1.4)
def kto(step: PlainStep, beta: float, desirable_weight: float, undesirable_weight: float) -> Expected:
    z0 = reference_point(step)
    values = kto_values(step, z0, beta, desirable_weight, undesirable_weight)
    return expected(values, reward=scaled(beta), sides=of_labels(step), metrics={"kl": [z0]})


@case(KTOZero, labelled, beta=0.3, desirable_weight=1.3, undesirable_weight=0.6)
def kto_zero(step: PlainStep, beta: float, desirable_weight: float, undesirable_weight: float) -> Expected:
    values = kto_values(step, torch.tensor(0.0), beta, desirable_weight, undesirable_weight)
    return expected(values, reward=scaled(beta), sides=of_labels(step))


@case(KTOPair, pairs, beta=0.3)
def kto_pair(step: PlainStep, beta: float) -> Expected:
    """Each side's reference point is the KL that the other one shows."""
    k_w, k_l = (step.largest(mean([pair[i].r for pair in step.pairs]), 0.0, f"KL {i}").detach() for i in (0, 1))
    return of_pairs(
        step,
        lambda won, lost: (1 - sigmoid(beta * (won.r - k_l)) + 1 - sigmoid(beta * (k_w - lost.r))) / 2,
        scaled(beta),
        metrics={"kl/chosen": [k_w], "kl/rejected": [k_l]},
    )


def classifier(method: BCO, units: list[Unit]) -> None:
    """Coefficients that give density ratios on both sides of their bounds."""
    method.classifier.copy_(0.5 * torch.randn(len(method.classifier), generator=torch.Generator().manual_seed(0)))


@case(BCO, labelled, beta=0.3)
@case(BCO, labelled, prepare=classifier, beta=0.4, match_prompts=True)
def bco(step: PlainStep, beta: float, match_prompts: bool = False) -> Expected:
    """delta from the rewards of all training steps so far, class by class."""
    seen = [y for s in step.so_far for y in s.answers]
    sides = ([beta * y.r for y in seen if y.good is side] for side in (True, False))
    delta = mean([mean(rewards) for rewards in sides]).detach()
    values = []
    for unit in step.units:
        ratio = torch.tensor(1.0)
        if match_prompts:
            *weights, intercept = step.method.classifier
            state = unit.answers[0].reference.prompt[-1]
            p = sigmoid(total(w * x for w, x in zip(weights, state, strict=True)) + intercept)
            ratio = step.largest(step.smallest(p / (1 - p), 10.0, "upper bound"), 0.5, "lower bound")
        for y in unit.answers:
            shifted = beta * y.r - delta
            values.append(-log_sigmoid(shifted) if y.good else -ratio * log_sigmoid(-shifted))
    return expected(values, reward=scaled(beta), sides=of_labels(step), metrics={"delta": [delta]})


@case(BetaDPO, pairs, beta=0.3, a=2.0, rho=Share(0.4), momentum=Share(0.7), filter_seed=3)
def beta_dpo(step: PlainStep, beta: float, a: float, rho: float, momentum: float, filter_seed: int) -> Expected:
    """Moving averages over training steps; validation is DPO at beta_0."""
    center = spread = 0.0
    for s in step.so_far:
        gaps = [number(won.r - lost.r) for won, lost in s.pairs]
        center = momentum * center + (1 - momentum) * mean(gaps)
        deviation = math.sqrt(sum((x - mean(gaps)) ** 2 for x in gaps) / (len(gaps) - 1))
        spread = momentum * spread + (1 - momentum) * deviation
    kept, own = step.pairs, torch.tensor(beta)
    if step.training:
        generator = torch.Generator().manual_seed(1_000_003 * filter_seed + step.number)
        ordered = sorted(step.pairs, key=lambda pair: number(pair[0].r - pair[1].r))
        noise = torch.rand(len(ordered), generator=generator, dtype=torch.float64).tolist()
        keys = []  # Gumbel noise on log weights: the largest are a draw without replacement
        for (won, lost), uniform in zip(ordered, noise, strict=True):
            keys.append(-((number(won.r - lost.r) - center) ** 2) / (2 * spread**2) - math.log(-math.log(uniform)))
        best = sorted(range(len(keys)), key=lambda i: -keys[i])[: math.floor((1 - rho) * len(keys))]
        kept = [ordered[i] for i in best]
        own = beta * (1 + a * (mean([won.r - lost.r for won, lost in kept]).detach() - center))
        own = step.largest(own, 1e-3, "least beta")
    values = [-log_sigmoid(own * (won.r - lost.r)) for won, lost in kept]
    metrics = {"beta": [own], "gaps/mean": [center], "gaps/spread": [spread]}
    return expected(values, reward=scaled(beta), sides=couples(step.pairs), metrics=metrics, count=len(step.units))
