"""Labels with a value head: OREO, oPPO and DRO-V."""

import math
from typing import Any

import tiny
import torch
from by_hand.answers import Answer, PlainStep
from by_hand.case import Expected, case, expected, mean, number, of_labels, reverse_kl, value
from by_hand.pairs import scaled
from by_hand.units import labelled
from torch import Tensor

from upo.methods import AOPPO, DROV, OPPO, OREO, StepOREO, TrajectoryOREO

# ---- OREO ------------------------------------------------------------------------------------------------------------


def of_bellman(step: PlainStep, begins: list[list[int]], beta: float, kappa: float, wrong_reward: float) -> Expected:
    """Squared errors of the soft Bellman equation.

    Args:
        begins: for each response the tokens at which its steps begin.
    """
    policy, values, divergence = [], [], []
    for y, first in zip(step.answers, begins, strict=True):
        reward, ends = 1.0 if y.good else wrong_reward, [*first[1:], y.n]
        rho = [y.rho[start:end].sum() for start, end in zip(first, ends, strict=True)]
        v = [value(step.method.value_head, y.policy.states[start]) for start in first]
        later = [sum(x.detach() for x in rho[i + 1 :]) for i in range(len(rho))]
        policy.append(mean([(v[i].detach() + beta * (rho[i] + later[i]) - reward) ** 2 for i in range(len(rho))]))
        values.append(mean([(v[i] + beta * (rho[i].detach() + later[i]) - reward) ** 2 for i in range(len(rho))]))
        divergence.append(reverse_kl(y).mean())
    terms = {"preference": policy, "value": values, "kl": divergence}
    return expected(terms, reward=scaled(beta), sides=of_labels(step), scales={"kl": kappa})


@case(OREO, labelled, beta=0.3, kappa=0.2, wrong_reward=-0.5)
def oreo(step: PlainStep, **options: float) -> Expected:
    return of_bellman(step, [list(range(y.n)) for y in step.answers], **options)


@case(TrajectoryOREO, labelled, beta=0.3, kappa=0.2, wrong_reward=-0.5)
def trajectory_oreo(step: PlainStep, **options: float) -> Expected:
    return of_bellman(step, [[0] for _ in step.answers], **options)


@case(StepOREO, labelled, beta=0.3, kappa=0.2, wrong_reward=-0.5)
def step_oreo(step: PlainStep, **options: float) -> Expected:
    """A step is a line with the line breaks behind it."""
    tokenizer, begins = tiny.tokenizer(), []
    for y in step.answers:
        broken = ["\n" in tokenizer.decode([token]) for token in y.ids]
        begins.append([t for t in range(y.n) if t == 0 or (broken[t - 1] and not broken[t])])
    assert max(map(len, begins)) > 1 and sum(map(len, begins)) < sum(y.n for y in step.answers)
    return of_bellman(step, begins, **options)


# ---- oPPO ------------------------------------------------------------------------------------------------------------


def raw_advantages(y: Answer, v: list[Tensor], reward: float, gamma: float, lam: float) -> list[Tensor]:
    """A_t = sum_{i >= t} (gamma lam)^(i - t) delta_i, the reward on the last token."""
    delta = []
    for t in range(y.n):
        last = t == y.n - 1
        delta.append((reward if last else 0.0) + gamma * (0.0 if last else v[t + 1].detach()) - v[t].detach())
    return [sum((gamma * lam) ** (i - t) * delta[i] for i in range(t, y.n)) for t in range(y.n)]


def ppo(
    step: PlainStep,
    rewards: list[float],
    gamma: float,
    lam: float,
    clip_low: float,
    clip_high: float,
    value_coefficient: float,
    kl_coefficient: float,
    metrics: dict[str, list[float]] = {},
) -> Expected:
    """Of single tokens; advantages are whitened over all of the step's."""
    every: list[tuple[Tensor, Tensor, Tensor, float]] = []
    for y, reward in zip(step.answers, rewards, strict=True):
        v = [value(step.method.value_head, state) for state in y.policy.states]
        returns = [gamma ** (y.n - 1 - t) * reward for t in range(y.n)]
        every += zip(y.rho, raw_advantages(y, v, reward, gamma, lam), v, returns, strict=True)
    center = mean([a for _, a, _, _ in every])
    deviation = torch.sqrt(mean([(a - center) ** 2 for _, a, _, _ in every]) + 1e-8)
    preference = []
    for rho, a, _, _ in every:
        ratio, white = torch.exp(rho), (a - center) / deviation
        inside = step.smallest(step.largest(ratio, clip_low, "lower end"), clip_high, "upper end")
        preference.append(step.largest(-white * ratio, -white * inside, "the clipped ratio counts"))
    ratios = [math.exp(number(rho)) for rho, _, _, _ in every]
    return expected(
        {
            "preference": preference,
            "value": [0.5 * (v - returned) ** 2 for _, _, v, returned in every],
            "kl": [rho for rho, _, _, _ in every],
        },
        reward=lambda y: y.r,
        sides=of_labels(step),
        scales={"value": value_coefficient, "kl": kl_coefficient},
        metrics={
            "advantages/mean": [center],
            "advantages/std": [deviation],
            "clipped": [float(not clip_low <= ratio <= clip_high) for ratio in ratios],
            **metrics,
        },
    )


PPO = {"gamma": 0.9, "lam": 0.8, "clip_low": 0.8, "clip_high": 1.3, "value_coefficient": 0.2, "kl_coefficient": 0.3}


@case(OPPO, labelled, **PPO)
def oppo(step: PlainStep, **options: float) -> Expected:
    return ppo(step, [1.0 if y.good else -1.0 for y in step.answers], **options)


@case(AOPPO, labelled, reward_weights={"clear": 0.5, "safe": -1.5}, **PPO)
def aoppo(step: PlainStep, reward_weights: dict[str, float], **options: float) -> Expected:
    objective = [y.objective(reward_weights) for y in step.answers]
    rewards = [(1.0 if y.good else -1.0) + r for y, r in zip(step.answers, objective, strict=True)]
    known = [(y.good, r) for y, r in zip(step.answers, objective, strict=True)]
    sides = {
        "objective/chosen": [r for good, r in known if good],
        "objective/rejected": [r for good, r in known if not good],
    }
    return ppo(step, rewards, metrics=sides, **options)


# ---- DRO-V -----------------------------------------------------------------------------------------------------------


def label_and_objective(good: bool, rewards: dict[str, float], options: dict[str, Any]) -> float:
    objective = sum(w * rewards[name] for name, w in options["reward_weights"].items())
    return options["preference_weight"] * (1 if good else -1) + objective


@case(DROV, labelled, tau=0.6, preference_weight=0.75, reward_weights={"clear": 0.5, "safe": -1.5})
@case(DROV, labelled, tau=0.4, preference_weight=1.5, reward_weights={"clear": 0.5}, reward_scale=(0.25, 2.0))
def dro_v(step: PlainStep, tau: float, **options: Any) -> Expected:
    """r has mean 0 and variance 1 over the data's responses, unless the scale is given."""
    every = [
        label_and_objective(bool(r.desirable), r.rewards, options) for u in labelled() for r in u.example.responses
    ]
    center, deviation = mean(every), math.sqrt(mean([(x - mean(every)) ** 2 for x in every]))
    center, deviation = options.get("reward_scale", (center, deviation))
    policy, values = [], []
    for unit in step.units:
        v = value(step.method.value_head, unit.answers[0].policy.prompt[-1])
        for y in unit.answers:
            r = (label_and_objective(y.good, y.response.rewards, options) - center) / deviation
            policy.append((r - v.detach() - tau * y.r) ** 2 / (2 * tau))
            values.append(0.5 * (v - (r - tau * y.r.detach())) ** 2)
    return expected({"preference": policy, "value": values}, reward=scaled(tau), sides=of_labels(step))
