"""How a survey of rewards looks: tables for the terminal, a picture."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from upo.runtime.console import wide_console

ARROWS = {True: "higher", False: "lower", None: "-"}
SIDES = ("chosen", "rejected")


def print_survey(content: Mapping[str, Any]) -> None:
    """A line a reward, then who goes with whom."""
    console = wide_console()
    counts = (
        f"{content['pairs']:,} pairs"
        if content["pairs"]
        else "{:,} desirable, {:,} undesirable responses".format(*content["responses"])
    )
    console.print(f"training split: {content['prompts']:,} prompts, {counts}", highlight=False)
    table = Table("reward", "weight", "better", "chosen", "5 / 50 / 95 %", "rejected", "5 / 50 / 95 %")
    for title in ("with label", "conflict", "ties"):
        table.add_column(title, justify="right", no_wrap=True)
    correlations = content["correlations"]["spearman"]
    for i, (name, x) in enumerate(content["rewards"].items()):
        conflict = x.get("conflict")
        table.add_row(
            Text(name),
            "" if x["weight"] is None else f"{x['weight']:g}",
            ARROWS[x["higher_is_better"]],
            *(cell for side in SIDES for cell in (_number(x[side]["mean"]), _quantiles(x[side]["quantiles"]))),
            _signed(correlations[i][-1]),
            "-"
            if conflict is None
            else f"{conflict['share']:.0%} ({100 * conflict['low']:.0f} to {100 * conflict['high']:.0f})",
            f"{x['ties']:.0%}" if "ties" in x else "-",
        )
    console.print(table)
    console.print(
        "conflict: pairs whose rejected response is better by the reward (95 % interval over prompts)\n"
        "correlations: Spearman's, over all responses; label: 1 for chosen, 0 for rejected",
        highlight=False,
    )
    names = content["correlations"]["names"]
    table = Table("", title="correlations", title_justify="left")
    for number in range(1, len(names)):  # names would not fit above the columns
        table.add_column(str(number), justify="right")
    for number, (name, row) in enumerate(zip(names, correlations, strict=True), 1):
        table.add_row(Text(f"{number} {name}" if number < len(names) else name), *map(_signed, row[:-1]))
    console.print(table)


def _number(x: float) -> str:
    return f"{x:.1f}" if abs(x) >= 10 else f"{x:.3f}"


def _quantiles(quantiles: Mapping[str, float]) -> str:
    shown = (quantiles[q] for q in ("0.05", "0.5", "0.95"))
    return " / ".join(f"{x:.0f}" if abs(x) >= 10 else f"{x:.2g}" for x in shown)


def _signed(x: float | None) -> str:
    return "-" if x is None else f"{x:+.2f}"


def draw_survey(content: Mapping[str, Any], columns: Mapping[str, np.ndarray], path: Path) -> None:
    """Histograms of chosen and rejected for each reward, and the correlations as a coloured table."""
    from matplotlib.figure import Figure  # pyplot would change what a notebook shows

    wide = min(3, len(columns))
    high = math.ceil(len(columns) / wide)
    names = content["correlations"]["names"]
    matrix_size = 1.6 + 0.55 * len(names)
    figure = Figure(figsize=(2.9 * wide + matrix_size, max(2.3 * high, matrix_size)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[2.9 * wide, matrix_size])
    axes = left.subplots(high, wide, squeeze=False).ravel()
    for axis, (name, values) in zip(axes, columns.items(), strict=False):
        _histograms(axis, name, values, content["rewards"][name].get("conflict"))
    axes[0].legend(fontsize=8, frameon=False)
    for axis in axes[len(columns) :]:
        axis.set_visible(False)
    _matrix(right.subplots(), names, content["correlations"]["spearman"])
    figure.savefig(path, dpi=130)


def _histograms(axis: Any, name: str, values: np.ndarray, conflict: Mapping[str, float] | None) -> None:
    low, high = np.nanquantile(values, [0.005, 0.995])  # a few outliers must not flatten the rest
    spread = 0 if high > low else 0.5
    edges = np.linspace(low - spread, high + spread, 31)
    for side, x, color in zip(SIDES, values, ("C0", "C3"), strict=True):
        x = np.clip(x[~np.isnan(x)], low, high)
        axis.hist(x, edges, weights=np.full(len(x), 1 / len(x)), color=color, alpha=0.45, label=side)
        axis.axvline(x.mean(), color=color, linewidth=1.2)
    axis.set_title(name if conflict is None else f"{name}: {conflict['share']:.0%} conflict", fontsize=9)
    axis.tick_params(labelsize=7)
    axis.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    axis.spines[["top", "right"]].set_visible(False)


def _matrix(axis: Any, names: list[str], rows: list[list[float | None]]) -> None:
    values = np.array([[math.nan if x is None else x for x in row] for row in rows])
    axis.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    for i, row in enumerate(rows):
        for j, x in enumerate(row):
            color = "white" if x is not None and abs(x) > 0.6 else "black"
            axis.text(j, i, "-" if x is None else f"{x:.2f}", ha="center", va="center", fontsize=7, color=color)
    axis.set_title("rank correlations", fontsize=9)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
