"""Figures by name: in which order they are read, which ones say most, and how a value looks."""

from collections.abc import Mapping

from upo.metrics.meanings import meaning

ORDER = ("win_rate", "lc_win_rate", "objective", "rewards/", "violations/", "categories/", "kl")
"""Beginnings of what is traded against each other: it comes first and side by side, then the text's health."""
HEADLINE = (
    *("policy/win_rate_vs_", "policy/objective", "policy/kl", "val/rewards/accuracies", "policy/rewards/"),
    *("policy/lc_win_rate_vs_", "policy/words", "policy/ended", "policy/repetition", "val/rewards/margins", "val/loss"),
)
"""Beginnings of what says most of a run, in this order."""


def first_preference(name: str) -> int:
    """Sorts figures by `ORDER`."""
    return next((i for i, start in enumerate(ORDER) if name.startswith(start)), len(ORDER))


def is_bound(name: str) -> bool:
    """Whether it is an interval's end or count rather than a figure of its own."""
    return name.endswith(("_low", "_high", "_n", "_se"))


def cell(figures: Mapping[str, float], name: str) -> str:
    """A figure with its interval where it has one; empty where it is missing."""
    if name not in figures:
        return ""
    text = f"{figures[name]:.3f}"
    if f"{name}_low" in figures:
        text += f" ({figures[f'{name}_low']:.3f} to {figures[f'{name}_high']:.3f})"
    return text


def headline(figures: Mapping[str, float], number: int = 10) -> list[str]:
    """The `number` figures that say most of a run."""
    names = [name for name in figures if not is_bound(name)]
    return [name for start in HEADLINE for name in names if name.startswith(start)][:number]


def headline_rows(figures: Mapping[str, float]) -> list[list[str]]:
    """A table of them, its head first: policy or value, reference, which direction is better, what it is."""
    rows = [["", "policy", "reference", "better", "what it is"]]
    for name in headline(figures):
        own = name.removeprefix("policy/")
        rows.append([own, cell(figures, name), cell(figures, f"reference/{own}"), *meaning(own)])
    return rows
