"""How well a perfectly trained policy would rank (Chen et al. 2024, https://arxiv.org/abs/2405.19534)."""

import math
from collections.abc import Sequence

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)
"""The paper's sweep."""
SURE = 1e-3
"""A rater share of 1 counts as 1 - SURE, one of 0 as SURE."""


def idealised_ranking(
    reference_margins: Sequence[float], rater_shares: Sequence[float] | None = None, *, beta: float
) -> list[float]:
    """1 for each pair that the optimum of DPO or RLHF ranks right, 0 for the others: their mean is R*.

    With pi*(w) / pi*(l) = ref(w) / ref(l) (alpha / (1 - alpha))^(1 / beta), the optimum is right where
    log ref(w) - log ref(l) + log(alpha / (1 - alpha)) / beta > 0, computed in logs. What a policy's ranking accuracy
    lacks against R* is optimisation's fault; what R* lacks against 1 is the reference's.

    Args:
        reference_margins: log ref(w) - log ref(l), in nats: of sums for R*, of means a token for its length-normalised
            twin.
        rater_shares: alpha, the share of raters that prefer w, by pair; by default all do. A pair on which raters tie
            (alpha = 0.5) has no right order: leave it out before.
        beta: strength of the pull towards the reference, above 0.
    """
    if beta <= 0:
        raise ValueError(f"beta={beta} must be above 0")
    shares = [1.0] * len(reference_margins) if rater_shares is None else rater_shares
    pulls = [math.log(a / (1 - a)) / beta for a in (min(max(s, SURE), 1 - SURE) for s in shares)]
    return [float(m + pull > 0) for m, pull in zip(reference_margins, pulls, strict=True)]
