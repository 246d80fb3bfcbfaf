"""Who is preferred, prompt by prompt, and the win rates that follow from it."""

from collections.abc import Collection, Mapping

from upo.judges.base import Verdict
from upo.metrics.intervals import bootstrap
from upo.metrics.length_control import length_controlled

MATCHES = (("policy", "chosen"), ("reference", "chosen"), ("policy", "reference"), ("policy", "rival"))
"""Systems that are compared with one another."""


def matches(systems: Collection[str]) -> list[tuple[str, str]]:
    """Those of `MATCHES` of which both systems are there."""
    return [(name, other) for name, other in MATCHES if name in systems and other in systems]


def by_reward(values: Mapping[str, list[dict[str, float]]]) -> None:
    """Adds who wins where the judge is a reward: the higher value of `rewards/judge`."""
    for name, other in matches(values):
        for own, theirs in zip(values[name], values[other], strict=True):
            margin = own["rewards/judge"] - theirs["rewards/judge"]
            add_verdict(own, other, Verdict(0.5 if margin == 0 else float(margin > 0)))


def add_verdict(own: dict[str, float], other: str, verdict: Verdict) -> None:
    """Adds to a prompt's values who has won against `other`, where there is an outcome."""
    if verdict.win is not None:
        own |= {f"win_rate_vs_{other}": verdict.win, f"ties_vs_{other}": float(verdict.win == 0.5)}


def win_figures(values: Mapping[str, list[dict[str, float]]]) -> dict[str, float]:
    """Beside Wilson's interval of each win rate: the bootstrap's, and the win rate with length held equal."""
    figures: dict[str, float] = {}
    for name, other in MATCHES:
        rows = values.get(name, [])
        judged = [i for i, row in enumerate(rows) if f"win_rate_vs_{other}" in row]
        if not judged:
            continue
        wins = [rows[i][f"win_rate_vs_{other}"] for i in judged]
        interval = bootstrap(wins)
        figures[f"{name}/win_rate_vs_{other}_bootstrap_low"] = interval.low
        figures[f"{name}/win_rate_vs_{other}_bootstrap_high"] = interval.high
        words = [rows[i]["words"] for i in judged]
        theirs = [values[other][i]["words"] for i in judged]
        if (controlled := length_controlled(wins, words, theirs)) is not None:
            figures |= controlled.named(f"{name}/lc_win_rate_vs_{other}")
    return figures
