"""Likelihood: of demonstrations, of responses behind control tokens, weighted by rewards or advantages."""

from collections.abc import Callable
from typing import Any

import torch
from by_hand.answers import Answer, PlainStep
from by_hand.case import Expected, Reward, case, expected
from by_hand.units import labelled, singles
from torch import Tensor

from upo.data.units import Unit
from upo.methods import ALOL, ALOLKL, CSFT, SFT, ALOLRefFree, ALOLSequence, RewardWeightedSFT


def nll(answers: list[Answer]) -> list[Tensor]:
    """Of each token."""
    return [-x for y in answers for x in y.policy.logps]


@case(SFT, singles)
def sft(step: PlainStep) -> Expected:
    metrics = {
        "nll_per_token": nll(step.answers),
        "logps/chosen": [y.pi for y in step.answers],
        "lengths/chosen": [y.n for y in step.answers],
    }
    return expected(nll(step.answers), metrics=metrics)


@case(CSFT, singles)
def csft(step: PlainStep) -> Expected:
    metrics = {
        "nll_per_token": nll(step.answers),
        "nll_per_token/good": nll([y for y in step.answers if y.good]),
        "nll_per_token/bad": nll([y for y in step.answers if not y.good]),
    }
    return expected(nll(step.answers), metrics=metrics)


@case(RewardWeightedSFT, labelled, reward_weights={"clear": 0.5, "safe": 1.5})
def reward_weighted_sft(step: PlainStep, reward_weights: dict[str, float]) -> Expected:
    metrics = {}
    for name, side in (("chosen", True), ("rejected", False)):
        own = [y for y in step.answers if y.good is side]
        metrics |= {f"objective/{name}": [y.objective(reward_weights) for y in own], f"nll/{name}": [-y.a for y in own]}
    return expected([-y.objective(reward_weights) * y.a for y in step.answers], metrics=metrics)


# ---- A-LOL: advantages that are known before the first step ----------------------------------------------------------

VALUES = (-0.25, -1.5, -0.75, -1.0, -0.5, -1.25, -2.0, -1.75, -0.125)
"""V(x) of each unit, as if it had been fitted: below all rewards."""
A_LOL = {"reward_weights": {"clear": 0.5, "safe": -0.25}, "undesirable_reward": -0.5, "value_warmup_steps": 7}


def advantages(method: Any, units: list[Unit]) -> None:
    known = [method.target(unit) - v for unit, v in zip(units, VALUES, strict=True)]
    method.advantages = {name: torch.tensor(known) for name in ("train", "val")}


def of_advantages(
    step: PlainStep, loss: Callable[[Answer, float], Tensor], reward: Reward | None, options: dict[str, Any]
) -> Expected:
    """The mean over responses of `loss(y, A)`, A = label + R - V."""
    known = []
    for y in step.answers:
        label = 1.0 if y.good else options["undesirable_reward"]
        unit = int(y.response.text.partition("/")[0])
        known.append(label + y.objective(options["reward_weights"]) - VALUES[unit])
    metrics = {
        "logps": [y.pi for y in step.answers],
        "advantages": known,
        "desirable": [float(y.good) for y in step.answers],
    }
    values = [loss(y, a) for y, a in zip(step.answers, known, strict=True)]
    return expected(values, reward=reward, metrics=metrics)


def clipped(step: PlainStep, logratio: Tensor, clip: float) -> Tensor:
    """clip(pi / ref, 1 - c, 1 + c), without gradient."""
    ratio = step.largest(torch.exp(logratio.detach()), 1 - clip, "lower end")
    return step.smallest(ratio, 1 + clip, "upper end")


@case(ALOL, singles, prepare=advantages, clip=0.6, **A_LOL)
def a_lol(step: PlainStep, clip: float, **options: Any) -> Expected:
    return of_advantages(step, lambda y, a: -a * clipped(step, y.r, clip) * y.pi, lambda y: y.r, options)


@case(ALOLSequence, singles, prepare=advantages, clip=0.3, **A_LOL)
def a_lol_sequence(step: PlainStep, clip: float, **options: Any) -> Expected:
    def loss(y: Answer, a: float) -> Tensor:
        return -a * sum(clipped(step, rho, clip) * logp for rho, logp in zip(y.rho, y.policy.logps, strict=True))

    return of_advantages(step, loss, lambda y: y.r, options)


@case(ALOLRefFree, singles, prepare=advantages, **A_LOL)
def a_lol_ref_free(step: PlainStep, **options: Any) -> Expected:
    return of_advantages(step, lambda y, a: -a * y.pi, None, options)


@case(ALOLKL, singles, prepare=advantages, beta=0.3, **A_LOL)
def a_lol_kl(step: PlainStep, beta: float, **options: Any) -> Expected:
    return of_advantages(step, lambda y, a: -a * y.pi + beta * y.r, lambda y: y.r, options)
