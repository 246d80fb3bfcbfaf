"""The picture of an evaluation: who wins, what the texts are like, how far the policy went, what margins mean."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upo.evaluation.tables import SYSTEMS
from upo.metrics.calibration import reliability

COLOURS = {"policy": "C0", "reference": "C7", "rival": "C3", "chosen": "C2"}
MOST = 5
"""Rewards with a panel of their own."""
FEW = 8
"""So many different values are bars; more are a histogram."""


def draw_evaluation(
    file: Path,
    figures: Mapping[str, float],
    values: Mapping[str, list[dict[str, float]]],
    of_pairs: Mapping[str, Sequence[float]],
) -> None:
    """Draws win rates with intervals, distributions of rewards, lengths and KL, margins and their calibration."""
    from matplotlib.figure import Figure  # pyplot would change what a notebook shows
    from matplotlib.lines import Line2D

    panels = _panels(figures, values, of_pairs)
    columns = min(2, len(panels))  # and large letters: to be read at 420 pixels
    height = -(-len(panels) // columns)
    width, tall = 3.3 * columns, 2.2 * height + 0.4
    figure = Figure(figsize=(width, tall))
    axes = figure.subplots(height, columns, squeeze=False)
    # margins in inches; fitting them (tight_layout) would draw everything three times
    figure.subplots_adjust(1.1 / width, 0.75 / tall, 1 - 0.1 / width, 1 - 0.35 / tall, wspace=0.35, hspace=0.5)
    for axis, (title, draw) in zip(axes.flat, panels, strict=False):
        axis.locator_params(nbins=5)  # most of the time goes into ticks and their labels
        draw(axis)
        axis.set_title(title, fontsize=10, y=1.0)  # a place that is given need not be searched for
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    lines = [Line2D([], [], color=COLOURS[w], label=w) for w in SYSTEMS if w in values]
    figure.legend(handles=lines, loc="lower center", ncols=len(lines), fontsize=9, frameon=False)
    figure.savefig(file, dpi=200, metadata={"Software": None})


def _panels(
    figures: Mapping[str, float],
    values: Mapping[str, list[dict[str, float]]],
    of_pairs: Mapping[str, Sequence[float]],
) -> list[tuple[str, Callable[[Any], None]]]:
    """Title and drawing of each panel for which there are figures."""
    panels: list[tuple[str, Callable[[Any], None]]] = []
    names = [n for n in figures if "win_rate_vs_" in n and f"{n}_low" in figures]
    if names:
        panels.append(("win rates (*: at equal lengths)", lambda axis: _intervals(axis, names, figures)))
    columns: dict[tuple[float, ...], str] = {}  # a judge that is one of the rewards has the same picture
    for name in (name for name in values["policy"][0] if name.startswith("rewards/")):
        columns.setdefault(tuple(row[name] for row in values["policy"] if name in row), name)
    for name in [*list(columns.values())[:MOST], "words"]:
        panels.append((name, lambda axis, name=name: _distributions(axis, name, values)))
    if "kl" in values["policy"][0]:
        own = {"policy": values["policy"]}
        panels.append(("KL to the reference, nats", lambda axis: _distributions(axis, "kl", own)))
    if margins := of_pairs.get("rewards/margins"):
        panels.append(("reward margins of held-out pairs", lambda axis: _margins(axis, margins)))
        if "val/rewards/calibration_error" in figures:
            panels.append(("calibration", lambda axis: _calibration(axis, margins)))
    return panels


def _intervals(axis: Any, names: Sequence[str], figures: Mapping[str, float]) -> None:
    for place, name in enumerate(reversed(names)):
        low, high = figures[f"{name}_low"], figures[f"{name}_high"]
        axis.plot([low, high], [place, place], color=COLOURS[name.partition("/")[0]], linewidth=2)
        axis.plot([figures[name]], [place], "o", color=COLOURS[name.partition("/")[0]], markersize=5)
    axis.set_yticks(range(len(names)), [_in_two_lines(name) for name in reversed(names)], fontsize=7)
    axis.axvline(0.5, color="0.6", linewidth=0.8)
    axis.set_xlim(0, 1)


def _in_two_lines(name: str) -> str:
    """`policy/lc_win_rate_vs_chosen` as policy, vs chosen*."""
    system, _, figure = name.partition("/")
    return f"{system}\nvs {figure.rpartition('win_rate_vs_')[2]}{'*' * figure.startswith('lc_')}"


def _distributions(axis: Any, name: str, values: Mapping[str, list[dict[str, float]]]) -> None:
    columns = {w: [row[name] for row in values[w] if name in row] for w in SYSTEMS if w in values}
    everything = [x for column in columns.values() for x in column]
    if len(different := sorted(set(everything))) <= FEW:
        _bars(axis, different, columns)
        return
    low, high, bins = min(everything), max(everything), 25
    if all(float(x).is_integer() for x in everything):  # as many whole numbers in each bin
        wide = -(-(high - low + 1) // bins)
        bins = int(-(-(high - low + 1) // wide))
        low, high = low - 0.5, low - 0.5 + bins * wide
    for system, column in columns.items():
        axis.hist(column, bins=bins, range=(low, high), histtype="step", color=COLOURS[system], label=system)
        axis.axvline(sum(column) / len(column), color=COLOURS[system], linestyle=":", linewidth=1)
    axis.set_ylabel("prompts", fontsize=8)


def _bars(axis: Any, different: Sequence[float], columns: Mapping[str, Sequence[float]]) -> None:
    """Of each value how many prompts have it, the systems side by side."""
    wide = 0.8 / len(columns)
    for place, (system, column) in enumerate(columns.items()):
        middles = [i + (place - (len(columns) - 1) / 2) * wide for i in range(len(different))]
        axis.bar(middles, [list(column).count(x) for x in different], width=wide, color=COLOURS[system])
    axis.set_xticks(range(len(different)), [f"{x:.3g}" for x in different])
    axis.set_ylabel("prompts", fontsize=8)


def _margins(axis: Any, margins: Sequence[float]) -> None:
    axis.hist(margins, bins=25, color="C0", alpha=0.7)
    axis.axvline(0, color="0.4", linewidth=0.8)
    axis.set_ylabel("pairs", fontsize=8)


def _calibration(axis: Any, margins: Sequence[float]) -> None:
    bins = reliability(margins)
    axis.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=0.8)
    axis.plot([b.confidence for b in bins], [b.accuracy for b in bins], "o-", color="C0", markersize=4)
    axis.set_xlabel("confidence, sigmoid(margin)", fontsize=8)
    axis.set_ylabel("share right", fontsize=8)
    axis.set_xlim(0.48, 1.02)
    axis.set_ylim(0, 1.05)
