"""UPO and its controls: a preference loss, advantage-weighted likelihood of all responses, and a value."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from attrs import evolve
from by_hand.answers import PlainStep, Unit
from by_hand.case import Expected, Values, case, expected, mean, means, number, of_labels, value
from by_hand.coupled import kto
from by_hand.driven import DATA_SEED
from by_hand.pairs import dpo, scaled
from by_hand.pairs_shaped import ipo
from by_hand.units import labelled, pairs
from torch import Tensor

from upo.functional.value_losses import Expectile, Linex
from upo.methods import UPO, UPODPO, UPOIPO, AuxiliaryOnly, UPOShuffled
from upo.methods.common.ranges import FlipRate

PLAIN = {
    "reward_weights": {"clear": 0.5, "safe": 1.5},
    "gamma": 0.3,
    "lam": 2.0,
    "value_loss": Expectile(0.8),
    "value_coefficient": 0.2,
    "value_warmup_steps": 6,
    "value_dropout": 0.25,
}
OTHER = PLAIN | {
    "reward_weights": {"clear": 0.5, "safe": -1.5},
    "length_normalize": False,
    "weight_clip": 1.25,
    "normalize_weights": True,
    "value_loss": Linex(2.0),
    "value_at": "mean",
    "value_per_reward": True,
}
"""Everything that is an option, the other way round."""


def heads(step: PlainStep, options: Mapping[str, Any]) -> list[tuple[Any, dict[str, float]]]:
    """Each head with the rewards that it is fitted to: one for R, or one for every r_i."""
    weights = options["reward_weights"]
    if not options.get("value_per_reward"):
        return [(step.method.value_head, weights)]
    return [(head, {name: 1.0}) for head, name in zip(step.method.value_head.heads, weights, strict=True)]


def values_of(step: PlainStep, unit: Unit, options: Mapping[str, Any], seed: tuple[int, ...] | None) -> list[Tensor]:
    """What each head says of a prompt.

    Args:
        seed: of dropout; null where there is none.
    """
    states = unit.answers[0].policy.prompt
    state = states.mean(0) if options.get("value_at") == "mean" else states[-1]
    found = []
    for i, (head, _) in enumerate(heads(step, options)):
        masks: Any = (1.0, 1.0)
        if seed is not None:
            own = (*seed, i) if options.get("value_per_reward") else seed
            uniform = np.random.default_rng(own).random((2, len(state)), dtype=np.float32)
            masks = torch.from_numpy(uniform >= options["value_dropout"]) / (1 - options["value_dropout"])
        found.append(value(head, state, masks))
    return found


def expectile(step: PlainStep, error: Tensor, loss: Any) -> Tensor:
    """|tau - 1(u < 0)| u^2."""
    positive = step.largest(error, 0.0, "R is above V") > 0
    return (loss.tau if positive else 1 - loss.tau) * error**2


def linex(step: PlainStep, error: Tensor, loss: Any) -> Tensor:
    """exp(lam u) - lam u - 1."""
    return torch.exp(loss.lam * error) - loss.lam * error - 1


VALUE_LOSSES = {Expectile: expectile, Linex: linex}


def auxiliary(
    step: PlainStep, options: Mapping[str, Any], shuffle_seed: int | None = None
) -> tuple[dict[str, Values], dict[str, Values]]:
    """Terms and what the metrics are made of."""
    weights, clip = options["reward_weights"], options.get("weight_clip")
    of_heads = [1.0] if not options.get("value_per_reward") else list(weights.values())
    value_loss, fitted = options["value_loss"], VALUE_LOSSES[type(options["value_loss"])]
    errors_of: Values = []
    plain: Values = []  # weights before they are made one another's
    known: Values = []
    for unit in step.units:
        place, v = len(known), sum(w * x for w, x in zip(of_heads, values_of(step, unit, options, None), strict=True))
        seed = (DATA_SEED, step.number, place) if step.training else None
        noisy = values_of(step, unit, options, seed)
        for y in unit.answers:
            r = y.objective(weights)
            weight = torch.exp(options["lam"] * (r - v)).detach()
            plain.append(weight if clip is None else step.smallest(weight, clip, "a clipped weight"))
            known.append((y, r, number(v)))
            errors = []
            for (_, own), noisy_v, sign in zip(heads(step, options), noisy, of_heads, strict=True):
                errors.append(math.copysign(1.0, sign) * (y.objective(own) - noisy_v))
            errors_of.append(mean([fitted(step, u, value_loss) for u in errors]))
    used = [w / mean(plain) for w in plain] if options.get("normalize_weights") else plain
    if shuffle_seed is not None:
        generator = torch.Generator().manual_seed(1_000_003 * shuffle_seed + step.number)
        used = [used[i] for i in torch.randperm(len(used), generator=generator).tolist()]
    if step.number < options["value_warmup_steps"]:
        used = [0.0 * w for w in used]
    per_token = options.get("length_normalize", True)
    terms = {
        "auxiliary": [-w * (y.a if per_token else y.pi) for w, (y, _, _) in zip(used, known, strict=True)],
        "value": errors_of,
    }
    return terms, {"w": plain, "R": [r for _, r, _ in known], "V": [v for _, _, v in known]}


def summary(values: Mapping[str, Values]) -> dict[str, float]:
    """Of the weights over everything seen; the others are means."""
    w, r, v = (sorted(map(number, values["w"])), values["R"], values["V"])
    place = 0.99 * (len(w) - 1)
    low = math.floor(place)
    p99 = w[low] + (place - low) * (w[min(low + 1, len(w) - 1)] - w[low])

    def variance(x: list[float]) -> float:
        return mean([(a - mean(x)) ** 2 for a in x])

    return means({name: x for name, x in values.items() if name not in ("w", "R", "V")}) | {
        "weights/mean": mean(w),
        "weights/max": w[-1],
        "weights/p99": p99,
        "weights/ess": sum(w) ** 2 / (len(w) * sum(x**2 for x in w)),
        "value/mean": mean(v),
        "value/explained_variance": 1 - variance([a - b for a, b in zip(r, v, strict=True)]) / variance(r),
    }


def unified(
    step: PlainStep,
    preference: Expected,
    options: Mapping[str, Any],
    preferred: list[bool],
    shuffle_seed: int | None = None,
) -> Expected:
    """L = L_pref + gamma L_aux + c_V L_V.

    Args:
        preference: the preference loss by hand.
        preferred: which of the step's answers are the better ones.
    """
    terms, pooled = auxiliary(step, options, shuffle_seed)
    objective: dict[str, Values] = {"objective/chosen": [], "objective/rejected": []}
    for good, r in zip(preferred, pooled["R"], strict=True):
        objective["objective/chosen" if good else "objective/rejected"].append(r)
    added = expected(terms, scales={"auxiliary": options["gamma"], "value": options["value_coefficient"]})
    loss = preference.loss + added.loss
    values = preference.values | added.values | objective | pooled
    values |= {"loss": [(loss, preference.count)], "loss/preference": [(preference.loss, preference.count)]}
    return evolve(preference, loss=loss, values=values, summary=summary)


def labels(step: PlainStep) -> list[bool]:
    return [y.good for y in step.answers]


@case(UPO, labelled, beta=0.3, desirable_weight=0.7, undesirable_weight=1.4, **PLAIN)
@case(UPO, labelled, beta=0.3, desirable_weight=0.7, undesirable_weight=1.4, **OTHER)
def upo(step: PlainStep, beta: float, desirable_weight: float, undesirable_weight: float, **options: Any) -> Expected:
    return unified(step, kto(step, beta, desirable_weight, undesirable_weight), options, labels(step))


@case(UPOShuffled, labelled, beta=0.3, desirable_weight=0.7, undesirable_weight=1.4, shuffle_seed=3, **PLAIN)
@case(UPOShuffled, labelled, beta=0.3, desirable_weight=0.7, undesirable_weight=1.4, shuffle_seed=4, **OTHER)
def upo_shuffled(
    step: PlainStep,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    shuffle_seed: int,
    **options: Any,
) -> Expected:
    preference = kto(step, beta, desirable_weight, undesirable_weight)
    return unified(step, preference, options, labels(step), shuffle_seed)


@case(UPODPO, pairs, beta=0.3, label_smoothing=FlipRate(0.2), **OTHER)
def upo_dpo(step: PlainStep, beta: float, label_smoothing: float, **options: Any) -> Expected:
    return unified(step, dpo(step, beta, label_smoothing), options, [True, False] * len(step.units))


@case(UPOIPO, pairs, tau=0.3, **OTHER)
def upo_ipo(step: PlainStep, tau: float, **options: Any) -> Expected:
    return unified(step, ipo(step, tau), options, [True, False] * len(step.units))


@case(AuxiliaryOnly, labelled, **OTHER)
def auxiliary_only(step: PlainStep, **options: Any) -> Expected:
    """Its rewards are log-ratios."""
    nothing = expected([0.0 for _ in step.answers], reward=scaled(1.0), sides=of_labels(step))
    made = unified(step, nothing, options, labels(step))
    return evolve(made, values={name: x for name, x in made.values.items() if name != "loss/preference"})
