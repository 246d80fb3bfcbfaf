"""How a comparison looks: tables for the terminal, a picture of the trade."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from upo.comparison import Group
from upo.tables import wide_console

TITLES = {
    "win_rate_vs_chosen": "win vs chosen",
    "win_rate_vs_reference": "win vs reference",
    "objective": "objective",
    "kl": "KL, nats",
    "val/rewards/accuracies": "held-out accuracy",
}


def print_comparison(content: Mapping[str, Any]) -> None:
    """The means, then the differences; a column a method, what is traded in neighbouring lines."""
    console = wide_console()
    rows = content["rows"]
    console.print("mean ± half of the 95 % interval over prompts and seeds")
    table = Table()
    table.add_column("")
    for row in rows:
        table.add_column(row["name"], justify="right")
    table.add_row("method", *(row["method"] for row in rows))
    table.add_row("seeds", *(", ".join(map(str, row["seeds"])) for row in rows), end_section=True)
    _add(table, content["figures"], [row["figures"] for row in rows], marked=False)
    console.print(table)
    for title, part in (
        ("policy minus its own reference", content["minus_reference"]),
        (f"minus {content['baseline']}", content["minus_baseline"]),
    ):
        if part:
            console.print(f"{title}, paired by prompt and seed; * the interval excludes 0")
            table = Table("")
            for name in part:
                table.add_column(name, justify="right")
            _add(table, content["figures"], list(part.values()), marked=True)
            console.print(table)


def _add(table: Table, names: Sequence[str], columns: Sequence[Mapping[str, Any]], *, marked: bool) -> None:
    for name in names:
        if any(name in column for column in columns):
            table.add_row(TITLES.get(name, name), *(cell(column.get(name), marked) for column in columns))


def cell(figure: Mapping[str, float] | None, marked: bool = False) -> str:
    """Mean and half width of its interval; a star where that excludes 0."""
    if figure is None:
        return "-"
    digits = 1 if abs(figure["mean"]) >= 10 else 3
    if "low" not in figure:
        return f"{figure['mean']:.{digits}f}"
    star = "*" if marked and (figure["low"] > 0 or figure["high"] < 0) else ""
    return f"{figure['mean']:.{digits}f} ±{(figure['high'] - figure['low']) / 2:.{digits}f}{star}"


def draw(groups: Sequence[Group], path: Path) -> bool:
    """Preference against objective: a small dot each run, a large one each group's mean with its intervals and KL.

    Returns False where there is no judge or no objective to draw.
    """
    wanted = [("objective", "rewards/judge"), ("win_rate_vs_chosen", "win_rate_vs_reference")]
    axes_names = [next((n for n in names if all(g.mean(f"policy/{n}") for g in groups)), None) for names in wanted]
    if None in axes_names:
        return False
    from matplotlib.figure import Figure  # pyplot would change what a notebook shows

    figure = Figure(figsize=(6.4, 4.8))
    axis = figure.subplots()
    for i, group in enumerate(groups):
        color = f"C{i % 10}"
        x, y = (group.mean(f"policy/{name}") for name in axes_names)
        for run in group.runs:
            own = Group(group.name, [run])
            axis.plot(*(own.mean(f"policy/{n}").mean for n in axes_names), "o", color=color, markersize=4, alpha=0.5)
        errors = {
            "xerr": [[x.mean - x.low], [x.high - x.mean]],
            "yerr": [[y.mean - y.low], [y.high - y.mean]],
        }
        axis.errorbar(x.mean, y.mean, **errors, fmt="o", color=color, markersize=9, capsize=2, label=group.name)
        if (kl := group.mean("policy/kl")) is not None:
            axis.annotate(f"KL {kl.mean:.1f}", (x.mean, y.mean), xytext=(8, 8), textcoords="offset points", fontsize=8)
    start = [next((g.mean(f"reference/{n}") for g in groups if g.mean(f"reference/{n}")), None) for n in axes_names]
    if start[0] is not None:  # against itself the reference wins half of the time
        y = start[1].mean if start[1] is not None else 0.5
        axis.plot(start[0].mean, y, "*", color="black", markersize=12, label="reference")
    axis.set_xlabel(TITLES.get(axes_names[0], axes_names[0]))
    axis.set_ylabel(TITLES[axes_names[1]])
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    return True
