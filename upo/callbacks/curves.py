"""The picture of a run: its training curves in one PNG."""

from collections.abc import Mapping
from pathlib import Path

from upo.callbacks.metrics_csv import read_metrics
from upo.runtime.run_folder import RunPaths

PANELS = (
    ("loss", "loss"),
    ("rewards/accuracies", "reward accuracy"),
    ("rewards/margins", "reward margin"),
    ("kl", "z0, nats, clamped at 0"),
    ("generated/objective", "R of the policy's texts"),
    ("value/explained_variance", "variance of R that V explains"),
    ("weights/ess", "effective share of weights"),
    ("nll_per_token", "nats a token"),
    ("logps/chosen", "log-prob of chosen, nats"),
)
"""What a model does; R of the data's own responses is none of it. In this order."""


def draw_curves(folder: Path, marks: Mapping[int, str] | None = None) -> None:
    """Draws curves.png from metrics.csv: training as a thin line with its running mean, validation as dots.

    Two panels stand side by side and the letters are large for their width, so that it can be read at 420 pixels.

    Args:
        marks: steps that get a vertical line, with what happens there.
    """
    from matplotlib.figure import Figure  # pyplot would change what a notebook shows
    from matplotlib.lines import Line2D

    run = RunPaths(folder)
    rows = read_metrics(run.metrics)
    panels = [
        (name, title) for name, title in PANELS if any(f"{x}/{name}" in r for r in rows for x in ("train", "val"))
    ]
    if not panels:
        return
    columns = min(2, len(panels))
    height = -(-len(panels) // columns)
    width, tall = 3.1 * columns, 2.1 * height + 0.5
    figure = Figure(figsize=(width, tall))
    axes = figure.subplots(height, columns, squeeze=False)
    # margins in inches; fitting them (tight_layout) takes longer than the drawing
    figure.subplots_adjust(0.6 / width, 0.4 / tall, 1 - 0.1 / width, 1 - 0.8 / tall, wspace=0.3, hspace=0.5)
    for axis, (name, title) in zip(axes.flat, panels, strict=False):
        steps = [r["step"] for r in rows if f"train/{name}" in r]
        values = [r[f"train/{name}"] for r in rows if f"train/{name}" in r]
        axis.plot(steps, values, color="C0", alpha=0.3, linewidth=0.8)
        axis.plot(steps, running_mean(values, max(1, len(values) // 25)), color="C0")
        held_out = [(r["step"], r[f"val/{name}"]) for r in rows if f"val/{name}" in r]
        if held_out:
            axis.plot(*zip(*held_out, strict=True), "o-", color="C1", markersize=4)
        for step in marks or {}:
            axis.axvline(step, color="0.4", linestyle="--", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=9, labelpad=1)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    lines = [Line2D([], [], color="C0", label="train"), Line2D([], [], color="C1", marker="o", label="held out")]
    lines += [
        Line2D([], [], color="0.4", linestyle="--", label=f"step {step}: {what}")
        for step, what in (marks or {}).items()
    ]
    figure.suptitle(folder.resolve().name, fontsize=11, y=1 - 0.06 / tall, va="top")
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 1 - 0.22 / tall), "ncols": 3 if columns > 1 else 1}
    figure.legend(handles=lines, fontsize=9, frameon=False, columnspacing=1, handlelength=1.5, **place)
    figure.savefig(run.curves, dpi=200)


def running_mean(values: list[float], width: int) -> list[float]:
    """Mean of the last `width` values."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(width, i + 1) for i in range(len(values))]
