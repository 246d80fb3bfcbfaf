"""How a comparison reads: tables for the terminal and in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from upo.runtime.console import wide_console
from upo.runtime.markdown import cell as in_markdown

TITLES = {
    "win_rate_vs_chosen": "win vs chosen",
    "win_rate_vs_reference": "win vs reference",
    "objective": "objective",
    "kl": "KL, nats",
    "val/rewards/accuracies": "held-out accuracy",
}
TRADED = tuple(TITLES)
"""What the terminal shows of many groups; the files hold everything."""
WIDE = 8
"""So many groups stand side by side; more are one line each."""

Row = tuple[str, Mapping[str, Any]]


def print_comparison(content: Mapping[str, Any]) -> None:
    """The means, then the differences; few groups in columns, many in lines."""
    console = wide_console()
    rows = content["rows"]
    many = len(rows) > WIDE
    console.print("mean ± half of the 95 % interval over prompts and seeds")
    figures = [name for name in content["figures"] if not many or name in TRADED]
    if many:
        console.print(_lines([(row["name"], row["figures"]) for row in rows], figures, marked=False))
    else:
        table = Table("")
        for row in rows:
            table.add_column(row["name"], justify="right")
        table.add_row("method", *(row["method"] for row in rows))
        if any(row["settings"] for row in rows):
            table.add_row("settings", *(_settings(row) for row in rows))
        table.add_row("seeds", *(", ".join(map(str, row["seeds"])) for row in rows), end_section=True)
        _add(table, figures, [row["figures"] for row in rows], marked=False)
        console.print(table)
    for title, part in (
        ("policy minus its own reference", content["minus_reference"]),
        (f"minus {content['baseline']}", content["minus_baseline"]),
    ):
        if any(part.values()):
            console.print(f"{title}, paired by prompt and seed; * the interval excludes 0")
            console.print(_lines(list(part.items()), figures, marked=True) if many else _columns(part, figures))
    for measured in content["at_kl"]:
        console.print(f"at KL {measured['kl']:g}, between the strengths of each method")
        console.print(_lines(*_at_kl(measured), marked=False))
        if measured["minus_baseline"]:
            console.print(f"at KL {measured['kl']:g}, minus {measured['baseline']}; * the interval excludes 0")
            part = list(measured["minus_baseline"].items())
            console.print(_lines(part, _known(part), marked=True))
    for published in content.get("published", []):
        console.print(f"{published['title']}: ours (published)")
        heads, lines = _published(published)
        table = Table(*heads)
        for line in lines:
            table.add_row(*line)
        console.print(table)


def _published(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of a published table; of ours alone the models that we have."""
    cells = table["cells"]
    ours = [model for model in next(iter(cells.values())) if any("ours" in row[model] for row in cells.values())]
    models = ours or list(next(iter(cells.values())))

    def text(own: Mapping[str, float]) -> str:
        half = f" ±{own['half']:.3g}" if "half" in own else ""
        return f"{own['ours']:.3g}{half} ({own['published']:g})" if "ours" in own else f"({own['published']:g})"

    return ["", *models], [[row, *(text(own[model]) for model in models)] for row, own in cells.items()]


def _settings(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in row["settings"].items())


def _known(rows: Sequence[Row]) -> list[str]:
    """Figures of any row, what is traded first."""
    names = dict.fromkeys(name for _, figures in rows for name in figures)
    return sorted(names, key=lambda name: TRADED.index(name) if name in TRADED else len(TRADED))[:8]


def _at_kl(measured: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
    rows = [
        (name if "figures" in found else f"{name}: {found['refused']}", found.get("figures", {}))
        for name, found in measured["families"].items()
    ]
    return rows, _known(rows)


def _lines(rows: Sequence[Row], figures: Sequence[str], *, marked: bool) -> Table:
    """A line a group."""
    shown = [name for name in figures if any(name in values for _, values in rows)]
    table = Table("", *(TITLES.get(name, name) for name in shown))
    for column in table.columns[1:]:
        column.justify = "right"
    for label, values in rows:
        table.add_row(label, *(cell(values.get(name), marked) for name in shown))
    return table


def _columns(part: Mapping[str, Any], figures: Sequence[str]) -> Table:
    """A column a group."""
    table = Table("")
    for name in part:
        table.add_column(name, justify="right")
    _add(table, figures, list(part.values()), marked=True)
    return table


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


def markdown(content: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """comparison.md: everything of the comparison, a line a group."""
    rows = content["rows"]
    parts = ["# Comparison", *content["notes"], "Mean ± half of the 95 % interval over prompts and seeds."]
    parts.append(
        _table(
            ["", "method", "settings", "seeds"],
            [([r["name"], r["method"], _settings(r), " ".join(map(str, r["seeds"]))], r["figures"]) for r in rows],
            content["figures"],
            marked=False,
        )
    )
    for title, part in (
        ("Minus its own reference", content["minus_reference"]),
        (f"Minus {in_markdown(content['baseline'])}", content["minus_baseline"]),
    ):
        if any(part.values()):
            parts += [f"## {title}", "Paired by prompt and seed; * the interval excludes 0."]
            parts.append(_table([""], [([k], v) for k, v in part.items()], content["figures"], marked=True))
    for measured in content["at_kl"]:
        lines, names = _at_kl(measured)
        parts += [
            f"## At KL {measured['kl']:g}",
            "Linear between the strengths of each method, seed by seed; bootstrap over prompts and seeds.",
            _table([""], [([k], v) for k, v in lines], names, marked=False),
        ]
        if measured["minus_baseline"]:
            parts.append(f"Minus {measured['baseline']}; * the interval excludes 0.")
            parts.append(_table([""], [([k], v) for k, v in measured["minus_baseline"].items()], names, marked=True))
    for front in content["fronts"]:
        x, y = (TITLES.get(front[axis], front[axis]) for axis in "xy")
        parts.append(f"## Fronts: {y} against {x}")
        corner = ", ".join(f"{value:.3g}" for value in front["corner"])
        parts.append(f"Hypervolume from ({corner}); every method over its settings.")
        names = list(dict.fromkeys(name for own in front["families"].values() for name in own))
        lines = [[k, *(f"{v[n]:.3g}" if n in v else "" for n in names)] for k, v in front["families"].items()]
        parts.append(_pipes(["", *(name.replace("_", " ") for name in names)], lines))
    for published in content.get("published", []):
        parts += [f"## {published['title']}", "Ours (published).", _pipes(*_published(published))]
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def _table(
    heads: Sequence[str],
    rows: Sequence[tuple[list[str], Mapping[str, Any]]],
    figures: Sequence[str],
    *,
    marked: bool,
) -> str:
    shown = [name for name in figures if any(name in values for _, values in rows)]
    lines = [[*labels, *(cell(values.get(name), marked) for name in shown)] for labels, values in rows]
    return _pipes([*heads, *(TITLES.get(name, name) for name in shown)], lines)


def _pipes(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(heads)
    cells = [[in_markdown(x.replace("|", "/")) for x in line] for line in [heads, rule, *lines]]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
