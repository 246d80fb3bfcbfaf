"""Confidence intervals over prompts: shares (Wilson), means and paired differences (bootstrap), prompts x seeds.

Values that share a prompt are not independent, so prompts, not values, are what both count or draw.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from attrs import frozen

DRAWS = 2000
KEPT = 1000
"""Draws of up to so many groups are kept for the next figure: 16 MB."""


@frozen
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float
    n: int
    """Values that entered."""

    def named(self, name: str) -> dict[str, float]:
        """The interval as flat metrics: `name`, `name_low`, `name_high`, `name_n`."""
        return {
            name: self.mean,
            f"{name}_low": self.low,
            f"{name}_high": self.high,
            f"{name}_n": float(self.n),
        }


def wilson(values: Sequence[float], groups: Sequence[object] | None = None, level: float = 0.95) -> Interval:
    """Wilson's interval of a share (Wilson 1927) with the effective sample size of clustered values.

    The effective size is p(1 - p) over the cluster-robust variance of p (Kish's design effect; Franco et al. 2019):
    values of one prompt that agree count less than their number, ties, which vary less than 0 and 1, count more.

    Args:
        values: 1 for a success, 0 for a failure, 0.5 for a tie.
        groups: whom a value belongs to, e.g. its prompt; by default each value is its own group.
    """
    x = _checked(values)
    sums = _sums(x - x.mean(), groups)
    p, n, k = float(x.mean()), len(x), len(sums)
    variance = float((sums**2).sum()) / n**2 * k / max(k - 1, 1)
    size = p * (1 - p) / variance if variance > 1e-12 else k
    z = NormalDist().inv_cdf(0.5 + level / 2)
    center = (p + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * np.sqrt(p * (1 - p) / size + z**2 / (4 * size**2))
    return Interval(p, max(0.0, float(center - half)), min(1.0, float(center + half)), n)


def bootstrap(
    values: Sequence[float], groups: Sequence[object] | None = None, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979): groups are drawn with replacement, `DRAWS` times.

    Args:
        values: any real values.
        groups: whom a value belongs to, e.g. its prompt; by default each value is its own group.
    """
    x = _checked(values)
    sums, counts = _sums(x, groups), _sums(np.ones_like(x), groups)
    means = [drawn @ sums / (drawn @ counts) for drawn in resamples(len(sums), seed)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high), len(x))


def resamples(n: int, seed: int) -> Iterable[np.ndarray]:
    """How often each of n groups is drawn in `DRAWS` draws of n with replacement: [100, n] at a time."""
    return _kept_resamples(n, seed) if n <= KEPT else _resamples(n, seed)


@lru_cache(maxsize=4)
def _kept_resamples(n: int, seed: int) -> tuple[np.ndarray, ...]:
    """All figures of an evaluation are resampled alike."""
    return tuple(_resamples(n, seed))


def _resamples(n: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for _ in range(0, DRAWS, 100):  # in pieces: 2000 draws of 100,000 prompts would need 1.6 GB
        yield rng.multinomial(n, np.full(n, 1 / n), size=100).astype(np.float64)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    groups: Sequence[object] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of a - b, element by element (the same prompt on both sides), with its bootstrap interval."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values against {len(b)}: a pair needs both")
    return bootstrap(np.subtract(_checked(a), _checked(b)).tolist(), groups, level, seed)


def crossed(
    values: Sequence[float], prompts: Sequence[object], seeds: Sequence[object], level: float = 0.95
) -> Interval:
    """Interval of a mean over prompts AND seeds: two-way cluster-robust variance (Cameron, Gelbach, Miller 2011).

    The variance adds what prompts and what seeds contribute, minus what both count; t with Satterthwaite's degrees of
    freedom, so that three seeds that disagree give the wide interval they deserve. With one seed it is an interval over
    prompts only. Prompts need not be the same for all seeds.

    Three seeds cannot tell a small seed effect from none. Simulated coverage with three: 96 % where seeds do not
    matter, 87 % at worst (seeds matter as much as the prompts' noise), 92 % where they dominate; with seeds ignored it
    would fall to 60 and 24 %.

    Args:
        prompts: the prompt of each value.
        seeds: the run of each value.
    """
    from scipy.stats import t

    x = _checked(values)
    rest, n = x - x.mean(), len(x)

    def variance(groups: Sequence[object]) -> tuple[float, int]:
        sums = _sums(rest, groups)
        return float((sums**2).sum()) / n**2 * len(sums) / max(len(sums) - 1, 1), max(len(sums) - 1, 1)

    by_prompt, prompt_freedom = variance(prompts)
    by_seed, seed_freedom = variance(seeds) if len(set(seeds)) > 1 else (0.0, 1)
    by_seed = max(by_seed - variance(list(zip(prompts, seeds, strict=True)))[0], 0.0)
    total = by_prompt + by_seed
    mean = float(x.mean())
    if total < 1e-24:
        return Interval(mean, mean, mean, n)
    freedom = total**2 / (by_prompt**2 / prompt_freedom + by_seed**2 / seed_freedom)
    half = float(t.ppf(0.5 + level / 2, freedom)) * total**0.5
    return Interval(mean, mean - half, mean + half, n)


def _checked(values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        raise ValueError("no value, no interval")
    return x


def _sums(x: np.ndarray, groups: Sequence[object] | None) -> np.ndarray:
    """Sum of each group's values."""
    if groups is None:
        return x
    index: dict[object, int] = {}
    places = [index.setdefault(group, len(index)) for group in groups]
    return np.bincount(places, weights=x, minlength=len(index))
