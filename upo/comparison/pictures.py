"""Fronts as one PNG: a panel for each pair of figures."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upo.comparison.view import TITLES

COLORS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#9c755f", "#76b7b2", "#edc948", "#af7aa1", "#ff9da7", "#bab0ac",
)  # fmt: skip


def colors_of(families: Iterable[str]) -> dict[str, str]:
    """A color for each family, by its place among all of a comparison: the same in every picture of it."""
    return {family: COLORS[i % len(COLORS)] for i, family in enumerate(dict.fromkeys(families))}


def draw_fronts(fronts: Sequence[Mapping[str, Any]], colors: Mapping[str, str], path: Path) -> bool:
    """A small dot each run, a large one each group's mean with its intervals, a line along each method's strengths.

    Points that another one of the method beats are hollow; the star is the reference. Returns False where there is
    nothing to draw.

    Args:
        colors: of all families, in the legend's order.
    """
    if not fronts:
        return False
    from matplotlib.figure import Figure  # pyplot would change what a notebook shows
    from matplotlib.lines import Line2D

    columns = min(2, len(fronts))  # and large letters: to be read at 420 pixels
    height = -(-len(fronts) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.9 * height))
    axes = figure.subplots(height, columns, squeeze=False)
    for axis, front in zip(axes.flat, fronts, strict=False):
        for family, color in colors.items():
            points = [point for point in front["points"] if point["family"] == family]
            for point in points:
                for x, y, _ in point["runs"]:
                    axis.plot(x, y, "o", color=color, markersize=2.5, alpha=0.35)
                errors = {
                    f"{a}err": [[point[a]["mean"] - point[a]["low"]], [point[a]["high"] - point[a]["mean"]]]
                    for a in "xy"
                }
                axis.errorbar(
                    point["x"]["mean"], point["y"]["mean"], **errors, fmt="o", color=color, markersize=5, capsize=2,
                    linewidth=1, markerfacecolor=color if point["front"] else "white",
                )  # fmt: skip
            line = sorted((p["x"]["mean"], p["y"]["mean"]) for p in points if p["front"])
            if line:
                axis.plot(*zip(*line, strict=True), "-", color=color, linewidth=1)
        if front["start"] is not None:
            axis.plot(*front["start"], "*", color="black", markersize=10)
        axis.set_xlabel(TITLES.get(front["x"], front["x"]), fontsize=9)
        axis.set_ylabel(TITLES.get(front["y"], front["y"]), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(fronts) :]:
        axis.remove()
    shown = [family for family in colors if any(family in front["families"] for front in fronts)]
    handles = [Line2D([], [], color=colors[family], marker="o", label=family) for family in shown]
    if any(front["start"] is not None for front in fronts):
        handles.append(Line2D([], [], color="black", marker="*", linestyle="", label="reference"))
    legend_below(figure, handles)
    figure.savefig(path, dpi=200)
    return True


def legend_below(figure: Any, handles: Sequence[Any]) -> None:
    """A legend in the columns that its names leave room for; the figure grows by it, so that panels keep their size."""
    width, height = figure.get_size_inches()
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(6, int(width / (0.5 + 0.075 * longest))))  # inches: a line with its gap, and a letter
    room = 0.15 + 0.2 * -(-len(handles) // columns)
    figure.set_size_inches(width, height + room)
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="lower center", ncol=columns)
    figure.tight_layout(rect=(0, room / (height + room), 1, 1))
