"""Methods at equal KL: figures between a method's strengths, so that none wins by having gone further.

For each seed, the groups of a family (one method at several strengths) are sorted by their mean KL, and a figure at KL
X is taken on the straight line between the two neighbours of X; then seeds are averaged. Where X lies outside the KL
that every seed has reached, there is no figure: nothing is extrapolated, not even to the reference at KL 0.

Intervals are 95 % percentile ones of a bootstrap that draws prompts and seeds independently (Owen 2007), KL and
figures together, so that the uncertainty of both enters; of S seeds S - 1 are drawn (Rao and Wu 1988), which makes the
variance between few seeds right. One seed is kept as it is, and the interval is one over prompts alone. Within a draw
the line of the outermost neighbours may reach a little beyond them. Differences use the same draws on both sides, which
pairs them by prompt and seed.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

if TYPE_CHECKING:
    from upo.comparison.runs import Group

DRAWS = 1000
CHUNK = 100
"""Draws at a time: all at once would need gigabytes for a hundred thousand prompts."""

Array = np.ndarray


@frozen
class Draws:
    """Weights of prompts and seeds: first everything once, then the bootstrap's draws."""

    prompts: dict[str, int]
    seeds: list[int]
    prompt_weights: Array
    """[draws, prompts]"""
    seed_weights: Array
    """[draws, seeds]"""


def draw(prompts: Sequence[str], seeds: Sequence[int], draws: int = DRAWS, seed: int = 0) -> Draws:
    """One set of draws for all methods, so that their differences are paired."""
    rng = np.random.default_rng(seed)
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    n, s = len(index), len(seeds)
    by_prompt = np.ones((draws + 1, n), dtype=np.float32)
    for start in range(1, draws + 1, CHUNK):
        size = min(CHUNK, draws + 1 - start)
        by_prompt[start : start + size] = rng.multinomial(n, np.full(n, 1 / n), size=size)
    by_seed = np.ones((draws + 1, s))
    if s > 1:
        by_seed[1:] = rng.multinomial(s - 1, np.full(s, 1 / s), size=draws)
    return Draws(index, list(seeds), by_prompt, by_seed)


def interpolate(kl: Array, figure: Array, x: float) -> Array:
    """The figure at KL `x` on the line between neighbours; [draws, strengths] twice -> [draws]."""
    order = np.argsort(kl, axis=1, kind="stable")
    kl, figure = np.take_along_axis(kl, order, 1), np.take_along_axis(figure, order, 1)
    upper = np.clip((kl < x).sum(axis=1, keepdims=True), 1, kl.shape[1] - 1)
    k0, k1 = (np.take_along_axis(kl, i, 1)[:, 0] for i in (upper - 1, upper))
    f0, f1 = (np.take_along_axis(figure, i, 1)[:, 0] for i in (upper - 1, upper))
    share = np.divide(x - k0, k1 - k0, out=np.full_like(k0, 0.5), where=k1 > k0)
    return f0 + share * (f1 - f0)


def at_kl(
    families: "Mapping[str, Sequence[Group]]", names: Sequence[str], x: float, baseline: str | None
) -> dict[str, Any]:
    """Figures of all families at KL `x`, as they stand in comparison.json.

    Returns:
        `families`: by name, its figures with intervals, or `refused`, a sentence; `minus_baseline`: differences.
    """
    everything = [run for groups in families.values() for group in groups for run in group.runs]
    seeds = sorted({run.seed for run in everything})
    prompts = dict.fromkeys(prompt for run in everything for prompt, _ in run.values("policy/kl"))
    draws = draw(list(prompts), seeds)
    found: dict[str, Any] = {}
    samples: dict[str, dict[str, Array]] = {}
    for family, groups in families.items():
        if (reason := refusal(groups, x)) is not None:
            found[family] = {"refused": reason}
            continue
        samples[family] = _samples(groups, names, x, draws)
        found[family] = {
            "seeds": groups[0].seeds,
            "figures": {name: _interval(sample) for name, sample in samples[family].items()},
        }
    base = samples.get(baseline or "", {})
    differences = {
        family: {name: _interval(sample - base[name]) for name, sample in own.items() if name in base}
        for family, own in samples.items()
        if base and family != baseline
    }
    return {"kl": x, "baseline": baseline, "families": found, "minus_baseline": differences}


def refusal(groups: "Sequence[Group]", x: float) -> str | None:
    """Why there is nothing to interpolate at KL `x`, if so."""
    if len(groups) < 2:
        return "one strength alone, nothing to interpolate between"
    if len({tuple(sorted(group.seeds)) for group in groups}) > 1:
        return "its strengths have different seeds"
    for seed in groups[0].seeds:
        means = [_mean_kl(group, seed) for group in groups]
        if None in means:
            return "KL was not measured"
        if not min(means) <= x <= max(means):
            return f"seed {seed} reached KL {min(means):.3g} to {max(means):.3g}"
    return None


def _mean_kl(group: "Group", seed: int) -> float | None:
    values = [v for run in group.runs if run.seed == seed for _, v in run.values("policy/kl")]
    return sum(values) / len(values) if values else None


def _samples(groups: "Sequence[Group]", names: Sequence[str], x: float, draws: Draws) -> dict[str, Array]:
    """Each figure at KL `x`: first the estimate, then the draws; [1 + draws]."""
    seeds = groups[0].seeds
    weights = draws.seed_weights[:, [draws.seeds.index(seed) for seed in seeds]]
    empty = weights.sum(axis=1) == 0  # seeds that only other methods have were drawn
    weights = np.where(empty[:, None], 1.0, weights)
    result = {}
    kl = {seed: _means(groups, seed, "policy/kl", draws) for seed in seeds}
    for name in names:
        if name == "kl" or not all(run.values(f"policy/{name}") for group in groups for run in group.runs):
            continue
        by_seed = [interpolate(kl[seed], _means(groups, seed, f"policy/{name}", draws), x) for seed in seeds]
        result[name] = (np.stack(by_seed, axis=1) * weights).sum(axis=1) / weights.sum(axis=1)
    return result


def _means(groups: "Sequence[Group]", seed: int, figure: str, draws: Draws) -> Array:
    """Means of a figure under each draw of prompts; [1 + draws, strengths]."""
    columns = []
    for group in groups:
        run = next(run for run in group.runs if run.seed == seed)
        prompts, values = zip(*run.values(figure), strict=True)
        weights = draws.prompt_weights[:, [draws.prompts[prompt] for prompt in prompts]]
        columns.append(weights @ np.asarray(values, dtype=np.float64) / np.maximum(weights.sum(axis=1), 1))
    return np.stack(columns, axis=1)


def _interval(sample: Array) -> dict[str, float]:
    low, high = np.quantile(sample[1:], [0.025, 0.975])
    return {"mean": float(sample[0]), "low": float(low), "high": float(high)}
