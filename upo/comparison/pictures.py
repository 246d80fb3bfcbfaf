"""Fronts as one PNG: a panel for each pair of figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upo.comparison.view import TITLES

NAMED = 8
"""So many points carry their KL; more would cover each other."""


def colors_of(fronts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """A number for each family, the same in all panels and pictures."""
    return {family: i for i, family in enumerate(dict.fromkeys(f for front in fronts for f in front["families"]))}


def draw_fronts(fronts: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """A small dot each run, a large one each group's mean with its intervals, a line along each method's strengths.

    Points that another one of the method beats are hollow; the star is the reference. Returns False where there is
    nothing to draw.
    """
    if not fronts:
        return False
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # pyplot would change what a notebook shows

    columns = min(3, len(fronts))
    height = -(-len(fronts) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.2 * height))
    axes = figure.subplots(height, columns, squeeze=False)
    colors = colors_of(fronts)
    for axis, front in zip(axes.flat, fronts, strict=False):
        for family, number in colors.items():
            color = colormaps["tab10" if len(colors) <= 10 else "tab20"](number % 20)
            points = [point for point in front["points"] if point["family"] == family]
            for point in points:
                for x, y, _ in point["runs"]:
                    axis.plot(x, y, "o", color=color, markersize=3, alpha=0.35)
                errors = {
                    f"{a}err": [[point[a]["mean"] - point[a]["low"]], [point[a]["high"] - point[a]["mean"]]]
                    for a in "xy"
                }
                axis.errorbar(
                    point["x"]["mean"], point["y"]["mean"], **errors, fmt="o", color=color, markersize=7, capsize=2,
                    linewidth=1, markerfacecolor=color if point["front"] else "white",
                )  # fmt: skip
            line = sorted((p["x"]["mean"], p["y"]["mean"]) for p in points if p["front"])
            if line:
                axis.plot(*zip(*line, strict=True), "-", color=color, linewidth=1, label=family)
        if front["start"] is not None:
            axis.plot(*front["start"], "*", color="black", markersize=12, label="reference")
        axis.set_xlabel(TITLES.get(front["x"], front["x"]))
        axis.set_ylabel(TITLES.get(front["y"], front["y"]))
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(fronts) :]:
        axis.remove()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    rows = -(-len(labels) // 6)
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="lower center", ncol=min(6, len(labels)))
    figure.tight_layout(rect=(0, 0.05 * rows, 1, 1))
    figure.savefig(path, dpi=130)
    return True
