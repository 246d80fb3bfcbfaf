"""Torchmetrics with sums and counts as states: exact over any batch size and any number of ranks."""

from upo.metrics.means import Means
from upo.metrics.weights import AdvantageWeights

__all__ = ["AdvantageWeights", "Means"]
