"""Tables and side-by-side samples for the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from upo.data.example import Example, as_text
from upo.metrics.figures import cell, first_preference, is_bound
from upo.runtime.console import wide_console

SYSTEMS = ("policy", "reference", "rival", "chosen")
SHOWN = 400
"""Characters of a text that are printed; samples.jsonl holds all."""


def print_evaluation(
    figures: Mapping[str, float], asked: Sequence[Example], texts: Mapping[str, list[str]], samples: int
) -> None:
    """Figures of policy, reference and chosen responses in columns, accuracies below them, then samples."""
    console = wide_console()
    systems = [w for w in SYSTEMS if w in texts]
    names = dict.fromkeys(
        name.partition("/")[2] for name in figures if name.partition("/")[0] in systems and not is_bound(name)
    )
    table = Table(title=f"{len(asked)} held-out prompts", title_justify="left")
    for column in ("", *systems):
        table.add_column(column, justify="left" if not column else "right")
    for name in sorted(names, key=first_preference):
        table.add_row(name, *(cell(figures, f"{w}/{name}") for w in systems))
    console.print(table)
    for name in (n for n in figures if n.startswith(("val/", "tasks/")) and not is_bound(n)):
        pairs = f", {figures[f'{name}_n']:.0f} pairs" if f"{name}_n" in figures else ""
        console.print(f"{name}: {cell(figures, name)}{pairs}", highlight=False)
    for i, example in enumerate(asked[:samples]):
        table = Table(title=f"sample {i + 1}", title_justify="left", show_header=False, show_lines=True)
        table.add_row("prompt", shortened(as_text(example.prompt), last=True))
        for system in reversed(systems):
            table.add_row(system, shortened(texts[system][i]))
        console.print(table, markup=False)


def shortened(text: str, last: bool = False) -> str:
    """At most `SHOWN` characters, the first or the last ones."""
    if len(text) <= SHOWN:
        return text
    return f"... {text[-SHOWN:]}" if last else f"{text[:SHOWN]} ..."
