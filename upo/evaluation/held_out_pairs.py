"""What held-out pairs tell without generating: accuracies, margins, calibration, and what the reference allows."""

from collections.abc import Mapping, Sequence
from statistics import median

from torch import Tensor

from upo.data.example import prompt_key
from upo.data.units import Unit
from upo.metrics.calibration import calibration_error
from upo.metrics.intervals import bootstrap, wilson
from upo.metrics.means import wins
from upo.metrics.ranking import BETAS, idealised_ranking
from upo.models.logps import ResponseLogps

ACCURACY, MARGIN = "rewards/accuracies", "rewards/margins"
ALIKE = 0.1
"""Lengths are matched that differ by at most this share of the longer one."""


def pair_values(logps: ResponseLogps, rewards: Tensor | None) -> dict[str, list[float]]:
    """By pair, what is known about it; accuracies are 1 where the chosen response is ahead, 0.5 for a tie.

    `rewards/accuracies`, `rewards/margins`: by the method's implicit reward, or, where it defines none, by the
    log-ratio. `ranking/accuracies`: by the policy's summed log-probs (Chen et al. 2024, arXiv 2405.19534),
    `..._mean` by log-probs a token.
    """
    yardsticks = {"ranking/accuracies": logps.logps, "ranking/accuracies_mean": logps.mean}
    if rewards is None and logps.reference_logps is not None:
        rewards = logps.logratio
    if rewards is not None:
        yardsticks[ACCURACY] = rewards
    margins = {name: x[0::2] - x[1::2] for name, x in yardsticks.items()}
    values = {name: wins(margin).tolist() for name, margin in margins.items()}
    return values | ({MARGIN: margins[ACCURACY].tolist()} if ACCURACY in margins else {})


def pair_figures(values: Mapping[str, list[float]], pairs: Sequence[Unit], log_odds: bool) -> dict[str, float]:
    """Means over pairs with intervals over prompts; reward accuracy also by source and for pairs of like lengths.

    Args:
        log_odds: whether margins are log-odds (`Method.reward_is_log_odds`): only then are they calibrated or not.
    """
    figures: dict[str, float] = {}

    def share(name: str, column: Sequence[float], places: Sequence[int]) -> None:
        if places:
            groups = [prompt_key(pairs[i].example.prompt) for i in places]
            interval = bootstrap if column is values.get(MARGIN) else wilson
            figures.update(interval([column[i] for i in places], groups).named(f"val/{name}"))

    for name, column in values.items():
        share(name, column, range(len(pairs)))
    if ACCURACY not in values:
        return figures
    if log_odds:
        figures["val/rewards/calibration_error"] = calibration_error(values[MARGIN])
    sources = sorted({unit.example.source for unit in pairs})
    for source in sources if len(sources) > 1 else ():
        own = [i for i, unit in enumerate(pairs) if unit.example.source == source]
        share(f"{ACCURACY}/{source}", values[ACCURACY], own)
    share(f"{ACCURACY}_length_matched", values[ACCURACY], [i for i, unit in enumerate(pairs) if _alike(unit)])
    return figures


def _alike(pair: Unit) -> bool:
    short, long = sorted(len(ids) for ids in pair.responses)
    return long - short <= ALIKE * long


def idealised_figures(logps: ResponseLogps, pairs: Sequence[Unit], beta: float | None) -> dict[str, float]:
    """Ranking accuracy that a perfectly trained policy would reach from this reference (Chen et al. 2024).

    `val/ranking/idealised` at the method's own beta; `_min`, `_median`, `_max` over the paper's betas (0.01 to 10);
    `val/ranking/idealised_mean...` the same by log-probs a token. Rater shares are the data's soft labels, 1 where it
    has none; pairs on which raters tie are left out. Empty without a reference.
    """
    if logps.reference_logps is None:
        return {}
    figures: dict[str, float] = {}
    labels = [unit.example.soft_label for unit in pairs]
    clear = [i for i, label in enumerate(labels) if label != 0.5]
    shares = [1.0 if (label := labels[i]) is None else max(label, 1 - label) for i in clear]
    if not clear:
        return {}
    for name, x in (("idealised", logps.reference), ("idealised_mean", logps.reference / logps.lengths)):
        margins = (x[0::2] - x[1::2])[clear].tolist()
        rates = {b: sum(idealised_ranking(margins, shares, beta=b)) / len(clear) for b in {*BETAS, beta or BETAS[0]}}
        swept = [rates[b] for b in BETAS]
        if beta:
            figures[f"val/ranking/{name}"] = rates[beta]
        ends = {"min": min(swept), "median": median(swept), "max": max(swept)}
        figures |= {f"val/ranking/{name}_{end}": rate for end, rate in ends.items()}
    return figures
