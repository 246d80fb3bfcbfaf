"""Methods at equal KL: figures between a method's strengths, so that none wins by having gone further.

For each seed, the groups of a family (one method at several strengths) are sorted by their mean KL, and a figure at KL
X is taken on the straight line between the two neighbours of X; then seeds are averaged. Where X lies outside the KL
that every seed has reached, there is no figure: nothing is extrapolated, not even to the reference at KL 0.

Intervals are 95 % ones over prompts and seeds, built as those of upo.metrics.intervals.crossed, but with the part of
the prompts from a bootstrap: prompts are drawn with replacement, the same for all methods and seeds, KL and figures
together, so that the uncertainty of both enters, the choice of neighbours included. The part of the seeds is the
variance between them beyond what prompts, drawn anew for each seed, explain; t with Satterthwaite's degrees of freedom
widens the interval where few seeds disagree. One seed gives an interval over prompts alone. Within a draw the line of
the outermost neighbours may reach a little beyond them. Differences are taken draw by draw and seed by seed.
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

BEYOND = 0.5
"""How far a draw may reach beyond two neighbours, in units of their distance: without a bound draws in which their KL
nearly agrees would decide the interval."""

Array = np.ndarray
Sample = dict[int, Array]
"""Seed to a figure: its estimate, then one value a draw of the prompts; [1 + draws]."""


@frozen
class Draws:
    """How often each prompt counts: first once, then as the bootstrap draws it."""

    prompts: dict[str, int]
    weights: Array
    """[1 + draws, prompts]"""


def draw(prompts: Sequence[str], draws: int = DRAWS, seed: int = 0) -> Draws:
    """One set of draws for all methods, so that their differences are paired."""
    rng = np.random.default_rng(seed)
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    n = len(index)
    weights = np.ones((draws + 1, n), dtype=np.float32)
    for start in range(1, draws + 1, CHUNK):
        size = min(CHUNK, draws + 1 - start)
        weights[start : start + size] = rng.multinomial(n, np.full(n, 1 / n), size=size)
    return Draws(index, weights)


def interpolate(kl: Array, figure: Array, x: float) -> Array:
    """The figure at KL `x` on the line between neighbours; [draws, strengths] twice -> [draws]."""
    order = np.argsort(kl, axis=1, kind="stable")
    kl, figure = np.take_along_axis(kl, order, 1), np.take_along_axis(figure, order, 1)
    upper = np.clip((kl < x).sum(axis=1, keepdims=True), 1, kl.shape[1] - 1)
    k0, k1 = (np.take_along_axis(kl, i, 1)[:, 0] for i in (upper - 1, upper))
    f0, f1 = (np.take_along_axis(figure, i, 1)[:, 0] for i in (upper - 1, upper))
    share = np.divide(x - k0, k1 - k0, out=np.full_like(k0, 0.5), where=k1 > k0).clip(-BEYOND, 1 + BEYOND)
    return f0 + share * (f1 - f0)


def at_kl(
    families: "Mapping[str, Sequence[Group]]", names: Sequence[str], x: float, baseline: str | None
) -> dict[str, Any]:
    """Figures of all families at KL `x`, as they stand in comparison.json.

    Returns:
        `families`: by name, its figures with intervals, or `refused`, a sentence; `minus_baseline`: differences.
    """
    everything = [run for groups in families.values() for group in groups for run in group.runs]
    prompts = dict.fromkeys(prompt for run in everything for prompt, _ in run.values("policy/kl"))
    draws = draw(list(prompts), DRAWS)
    found: dict[str, Any] = {}
    samples: dict[str, dict[str, Sample]] = {}
    for family, groups in families.items():
        if (reason := refusal(groups, x)) is not None:
            found[family] = {"refused": reason}
            continue
        samples[family] = _samples(groups, names, x, draws)
        found[family] = {
            "seeds": groups[0].seeds,
            "figures": {name: _interval(sample, len(prompts)) for name, sample in samples[family].items()},
        }
    base = samples.get(baseline or "", {})
    differences = {
        family: {
            name: _difference(own[name], base[name], len(prompts))
            for name in own
            if name in base and own[name].keys() & base[name]
        }
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


def _samples(groups: "Sequence[Group]", names: Sequence[str], x: float, draws: Draws) -> dict[str, Sample]:
    """Each figure at KL `x`: by seed the estimate, then the draws."""
    kl = {seed: _means(groups, seed, "policy/kl", draws) for seed in groups[0].seeds}
    return {
        name: {s: interpolate(kl[s], _means(groups, s, f"policy/{name}", draws), x) for s in groups[0].seeds}
        for name in names
        if name != "kl" and all(run.values(f"policy/{name}") for group in groups for run in group.runs)
    }


def _means(groups: "Sequence[Group]", seed: int, figure: str, draws: Draws) -> Array:
    """Means of a figure under each draw of prompts; [1 + draws, strengths]."""
    columns = []
    for group in groups:
        run = next(run for run in group.runs if run.seed == seed)
        prompts, values = zip(*run.values(figure), strict=True)
        weights = draws.weights[:, [draws.prompts[prompt] for prompt in prompts]]
        columns.append(weights @ np.asarray(values, dtype=np.float64) / np.maximum(weights.sum(axis=1), 1))
    return np.stack(columns, axis=1)


def _difference(ours: Sample, theirs: Sample, prompts: int) -> dict[str, float]:
    """Over the seeds that both have."""
    return _interval({seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}, prompts)


def _interval(sample: Sample, prompts: int) -> dict[str, float]:
    from scipy.stats import t

    unbiased = prompts / max(prompts - 1, 1)  # the bootstrap's variance divides by n

    by_seed = np.stack(list(sample.values()))
    estimates, draws, s = by_seed[:, 0], by_seed[:, 1:], len(by_seed)
    by_prompt = float(draws.mean(axis=0).var()) * unbiased
    apart = float(np.mean([np.roll(row, 7 * i) for i, row in enumerate(draws)], axis=0).var()) * unbiased
    between = max(float(estimates.var(ddof=1)) / s - apart, 0.0) if s > 1 else 0.0
    mean, total = float(estimates.mean()), by_prompt + between
    if total < 1e-24:
        return {"mean": mean, "low": mean, "high": mean}
    freedom = total**2 / (by_prompt**2 / max(prompts - 1, 1) + between**2 / max(s - 1, 1))
    half = float(t.ppf(0.975, freedom)) * total**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}
