"""Whether a reward means the probability that it claims: sigmoid(margin) against how often the margin is right."""

from collections.abc import Sequence

import numpy as np
from attrs import frozen


@frozen
class Bin:
    """Pairs of similar confidence."""

    confidence: float
    """Mean of max(p, 1 - p), p = sigmoid(margin)."""
    accuracy: float
    """Share of these pairs whose chosen response is ahead; a tie counts half."""
    n: int


def reliability(margins: Sequence[float], bins: int = 10) -> list[Bin]:
    """Pairs by confidence, in `bins` classes of equal width over [0.5, 1]; empty classes are left out.

    Args:
        margins: reward of the chosen minus reward of the rejected response, in nats: the log-odds that the
            Bradley-Terry model gives the chosen one.
    """
    x = np.asarray(margins, dtype=np.float64)
    confidence = 1 / (1 + np.exp(-np.minimum(np.abs(x), 700)))
    right = 0.5 * (1 + np.sign(x))
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    return [
        Bin(float(confidence[place == k].mean()), float(right[place == k].mean()), int((place == k).sum()))
        for k in np.unique(place)
    ]


def calibration_error(margins: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017): sum_k n_k / n |accuracy_k - confidence_k|.

    In [0, 1], 0 is perfect. Noise in small classes adds to it: compare equal numbers of pairs.
    """
    found = reliability(margins, bins)
    if not found:
        raise ValueError("no margin, no calibration")
    return sum(b.n * abs(b.accuracy - b.confidence) for b in found) / sum(b.n for b in found)
