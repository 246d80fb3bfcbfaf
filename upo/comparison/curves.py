"""Training curves of many runs in one picture: a line each group, the mean over its seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from upo.callbacks.curves import PANELS, running_mean
from upo.callbacks.metrics_csv import read_metrics
from upo.comparison.pictures import colors_of, legend_below
from upo.runtime.run_folder import RunPaths

if TYPE_CHECKING:
    from upo.comparison.runs import Group

Curve = tuple[np.ndarray, np.ndarray]


def draw_curves(groups: "Sequence[Group]", path: Path) -> bool:
    """One panel each quantity that at least two groups logged (or the only one); False where no run kept metrics.csv.

    Colors are methods, as in the fronts; of a method at many strengths the lines share one.
    """
    curves = {
        f"train/{name}": [(group.family, curve) for group in groups if (curve := _mean_curve(group, f"train/{name}"))]
        for name, _ in PANELS
    }
    panels = [(f"train/{n}", title) for n, title in PANELS if len(curves[f"train/{n}"]) >= min(2, len(groups))]
    if not panels:
        return False
    from matplotlib.figure import Figure  # pyplot would change what a notebook shows
    from matplotlib.lines import Line2D

    colors = colors_of(group.family for group in groups)
    columns = min(2, len(panels))  # and large letters: to be read at 420 pixels
    height = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * height))
    axes = figure.subplots(height, columns, squeeze=False)
    for axis, (name, title) in zip(axes.flat, panels, strict=False):
        for family, (steps, values) in curves[name]:
            axis.plot(steps, values, color=colors[family], linewidth=1, alpha=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    legend_below(figure, [Line2D([], [], color=color, label=family) for family, color in colors.items()])
    figure.savefig(path, dpi=200)
    return True


def _mean_curve(group: "Group", name: str) -> Curve | None:
    """Running mean over steps of the mean over the seeds that reached a step."""
    values: dict[float, list[float]] = {}
    for run in group.runs:
        if (file := RunPaths(run.folder).metrics).is_file():
            for row in _rows(file):
                if name in row:
                    values.setdefault(row["step"], []).append(row[name])
    if not values:
        return None
    steps = sorted(values)
    means = [sum(values[step]) / len(values[step]) for step in steps]
    return np.array(steps), np.array(running_mean(means, max(1, len(means) // 25)))


_kept: dict[tuple[Path, int], list[dict[str, float]]] = {}


def _rows(file: Path) -> list[dict[str, float]]:
    """Each file is read once for all panels."""
    key = file, file.stat().st_mtime_ns
    if key not in _kept:
        _kept[key] = read_metrics(file)
    return _kept[key]
