"""What a bench leaves: a table, bench.json and bench.png."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def verdict(row: dict[str, Any]) -> str:
    """`pass` or what is short of its target; empty without a target."""
    limits = [
        ("speed", row["ratio"], row["at_least"], 1),
        ("memory", row["memory_ratio"], row["at_most_memory"], -1),
        ("floor", row["floor"], row["at_least_floor"], 1),
    ]
    known = [(name, x, limit, sign) for name, x, limit, sign in limits if limit is not None]
    short = [f"{name} {x:.2f}" for name, x, limit, sign in known if x is None or sign * x < sign * limit]
    return ", ".join(f"short: {s}" for s in short) or ("pass" if known else "")


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(
        title="medians over turns; ratios are other / ours in time, ours / other in memory", title_justify="left"
    )
    for name in (
        "case",
        "against",
        "pairs/s",
        "response tokens/s",
        "ratio",
        "target",
        "memory MB",
        "ratio",
        "floor",
        "",
    ):
        table.add_column(name, justify="left" if name in ("case", "against", "") else "right")
    for r in rows:
        table.add_row(
            r["case"], r["other"], f"{r['pairs_per_second']:.2f}", f"{r['tokens_per_second']:.0f}",
            f"{r['ratio']:.2f}", "" if r["at_least"] is None else f"{r['at_least']:.2f}",
            f"{r['memory'] / 1e6:.0f}", f"{r['memory_ratio']:.2f}",
            "" if r["floor"] is None else f"{r['floor']:.2f}", verdict(r),
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 150).print(table)


def write(rows: list[dict[str, Any]], settings: dict[str, Any], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "cases": [r | {"verdict": verdict(r)} for r in rows]}
    (folder / "bench.json").write_text(json.dumps(content, indent=2) + "\n")
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.34 * len(rows)), layout="constrained")
    places = range(len(rows))
    axes.barh(places, [r["ratio"] for r in rows], color="#4477aa", height=0.6)
    for i, r in enumerate(rows):
        axes.text(r["ratio"], i, f" {r['ratio']:.2f}x", va="center", fontsize=8)
        if r["at_least"] is not None:
            axes.plot([r["at_least"]] * 2, [i - 0.4, i + 0.4], color="#cc3311", linewidth=2)
    axes.set_yticks(places, [f"{r['case']} / {r['other']}" for r in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("speed relative to the other (red: target)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "bench.png", dpi=130)
    plt.close(figure)
