"""The picture of a run: its training curves in one PNG."""

from pathlib import Path

from upo.callbacks.metrics_csv import read_metrics
from upo.runtime.run_folder import RunPaths

PANELS = (
    ("loss", "loss"),
    ("rewards/accuracies", "reward accuracy"),
    ("rewards/margins", "reward margin"),
    ("kl", "z0, nats"),
    ("objective/chosen", "objective R, chosen"),
    ("weights/ess", "effective sample size of weights"),
    ("nll_per_token", "nats a token"),
    ("logps/chosen", "log-prob of chosen, nats"),
)


def draw_curves(folder: Path) -> None:
    """Draws curves.png from metrics.csv: training as a thin line with its running mean, validation as dots."""
    from matplotlib.figure import Figure  # pyplot would change what a notebook shows

    run = RunPaths(folder)
    rows = read_metrics(run.metrics)
    panels = [(name, title) for name, title in PANELS if any(f"train/{name}" in r for r in rows)]
    if not panels:
        return
    columns = min(3, len(panels))
    height = -(-len(panels) // columns)
    width, tall = 4.2 * columns, 2.8 * height + 0.2
    figure = Figure(figsize=(width, tall))
    axes = figure.subplots(height, columns, squeeze=False)
    # margins in inches; fitting them (tight_layout) takes longer than the drawing
    figure.subplots_adjust(0.65 / width, 0.45 / tall, 1 - 0.15 / width, 1 - 0.6 / tall, wspace=0.28, hspace=0.45)
    for axis, (name, title) in zip(axes.flat, panels, strict=False):
        steps = [r["step"] for r in rows if f"train/{name}" in r]
        values = [r[f"train/{name}"] for r in rows if f"train/{name}" in r]
        axis.plot(steps, values, color="C0", alpha=0.3, linewidth=0.8)
        axis.plot(steps, running_mean(values, max(1, len(values) // 25)), color="C0", label="train")
        held_out = [(r["step"], r[f"val/{name}"]) for r in rows if f"val/{name}" in r]
        if held_out:
            axis.plot(*zip(*held_out, strict=True), "o-", color="C1", markersize=4, label="val")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    axes.flat[0].legend(fontsize=8, frameon=False)
    figure.suptitle(folder.name, fontsize=11, y=1 - 0.1 / tall, va="top")
    figure.savefig(run.curves, dpi=130)


def running_mean(values: list[float], width: int) -> list[float]:
    """Mean of the last `width` values."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(width, i + 1) for i in range(len(values))]
