"""Win rate that length cannot buy, after the idea of AlpacaEval 2 (Dubois et al. 2024, https://arxiv.org/abs/2404.04475).

    logit P(win_i) = a + b * tanh(d_i / sd(d)),      d_i = words of this response - words of the other one
    length-controlled win rate = sigmoid(a): the rate predicted for responses of equal length

Differences from AlpacaEval 2: there one regression over many models has a further term for how hard a prompt is, which
needs outcomes of other models; there the rate is a mean of predictions over prompts, which without that term is
sigmoid(a) for every prompt; lengths are words here, characters there; ties enter as half a win; b has a standard
normal prior (strength 1 against n prompts), so that a length that separates wins from losses gives a finite fit.
Where one side is hardly ever the shorter one, the data hold no responses of like length, and there is no such rate.
"""

from collections.abc import Sequence

import numpy as np

from upo.metrics.intervals import Interval, resamples

OVERLAP = 0.05
"""Each side must be no longer than the other on this share of the prompts."""
STEPS = 50
LARGEST = 30.0
"""Bound of the logits: sigmoid(-30) is 1e-13."""


def length_controlled(
    wins: Sequence[float],
    words: Sequence[float],
    other_words: Sequence[float],
    level: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Length-controlled win rate with its bootstrap interval: prompts are drawn anew, and each draw is fitted anew.

    None where the lengths of the two sides do not overlap; the plain win rate where all are equal.

    Args:
        wins: 1 for a win, 0 for a loss, 0.5 for a tie; or anything between.
        words: length of this side's responses, prompt by prompt.
        other_words: length of the other side's responses.
    """
    y = np.asarray(wins, dtype=np.float64)
    difference = np.subtract(np.asarray(words, dtype=np.float64), other_words)
    if not len(y) or len(y) != len(difference):
        raise ValueError(f"{len(y)} outcomes for {len(difference)} differences in length: each prompt needs both")
    if min((difference <= 0).mean(), (difference >= 0).mean()) < OVERLAP:
        return None
    spread = difference.std()
    x = np.tanh(difference / spread) if spread > 1e-12 else np.zeros_like(y)
    rate = float(_rates(y, x, np.ones((1, len(y))))[0])
    rates = np.concatenate([_rates(y, x, weights) for weights in resamples(len(y), seed)])
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(rate, float(low), float(high), len(y))


def _rates(y: np.ndarray, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sigmoid(a) of the fit for each row of weights [draws, n], by Newton's method with bounded steps."""
    mean = weights @ y / weights.sum(1)
    start = np.clip(mean, 1e-3, 1 - 1e-3)
    a, b = np.log(start / (1 - start)), np.zeros(len(weights))
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-(a[:, None] + b[:, None] * x)))
        rest, curve = weights * (y - p), weights * p * (1 - p)
        slope_a, slope_b = rest.sum(1), rest @ x - b
        aa, ab, bb = curve.sum(1) + 1e-12, curve @ x, curve @ x**2 + 1
        scale = aa * bb - ab**2
        step_a, step_b = (bb * slope_a - ab * slope_b) / scale, (aa * slope_b - ab * slope_a) / scale
        a = np.clip(a + np.clip(step_a, -2, 2), -LARGEST, LARGEST)
        b = np.clip(b + np.clip(step_b, -2, 2), -LARGEST, LARGEST)
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-6:  # converges quadratically
            break
    certain = (mean < 1e-12) | (mean > 1 - 1e-12)  # all lost or all won: no finite fit, whatever the lengths
    return np.where(certain, mean, 1 / (1 + np.exp(-a)))
