"""An evaluation to read: report.md and report.html with pictures and samples, and AlpacaEval's file of outputs."""

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from upo.data.example import Example, Prompt, as_text
from upo.evaluation.measure import INTERVALS
from upo.evaluation.report_pictures import draw_evaluation
from upo.evaluation.tables import SYSTEMS
from upo.evaluation.training_settings import training_settings
from upo.metrics.figures import cell, first_preference, is_bound
from upo.metrics.intervals import bootstrap
from upo.metrics.meanings import meaning
from upo.runtime.atomic_files import write_json
from upo.runtime.markdown import cell as in_markdown
from upo.runtime.run_folder import RunPaths

MEANS = ("better", "what it is")
"""Columns that say what a row means."""
PROMPTS = 20
"""Prompts whose responses are shown."""
JUDGED = ("objective", "rewards/", "win_rate_vs_")
"""Beginnings of what stands beside a text."""
STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
th, td { border: 1px solid #ccc; padding: .3em .6em;
text-align: left; vertical-align: top; white-space: pre-wrap } th { background: #f3f3f3 } img { max-width: 100% }
"""


@frozen
class Table:
    """A heading and the rows below it; the first row names the columns."""

    title: str
    rows: list[list[str]]


def write_report(
    folder: Path,
    figures: Mapping[str, float],
    asked: Sequence[Example],
    texts: Mapping[str, Sequence[str]],
    values: Mapping[str, list[dict[str, float]]],
    of_pairs: Mapping[str, list[float]],
    settings: Mapping[str, Any],
    remarks: Sequence[str] = (),
    run: Path | None = None,
) -> None:
    """Writes report.md, report.html (one file, pictures included), evaluation.png and alpaca_eval.json.

    Args:
        texts: by system, one response a prompt.
        values: by system and prompt, what was measured.
        of_pairs: by name, what was measured on held-out pairs.
        settings: of the evaluation.
        remarks: what a reader of the figures has to know, in sentences.
        run: folder of the run, whose settings and curves are shown; by default `folder`.
    """
    paths, trained, title = RunPaths(folder), RunPaths(run or folder), f"Evaluation of {folder.resolve().name}"
    write_json(paths.alpaca_eval, alpaca_eval(asked, texts["policy"], folder.resolve().name))
    draw_evaluation(paths.evaluation_picture, figures, values, of_pairs)
    said = [Table("Remarks", [["what to know of these figures"], *([remark] for remark in remarks)])] if remarks else []
    tables = [*said, *differences(values), *tables_of(figures, asked, texts, values, settings)]
    if trained.config.is_file():
        tables.append(Table("Training settings", [["", "value"], *training_settings(trained.config)]))
    pictures = {"figures": paths.evaluation_picture, "training curves": trained.curves}
    pictures = {name: file for name, file in pictures.items() if file.is_file()}
    links = {name: Path(os.path.relpath(file, folder)).as_posix() for name, file in pictures.items()}
    paths.report_markdown.write_text(markdown(title, tables, links))
    embedded = {name: base64.b64encode(file.read_bytes()).decode() for name, file in pictures.items()}
    paths.report_html.write_text(as_html(title, tables, embedded))


def differences(values: Mapping[str, list[dict[str, float]]]) -> list[Table]:
    """Policy minus reference prompt by prompt, of all that has an interval; nothing without a reference.

    Args:
        values: by system and prompt, what was measured.
    """
    if "reference" not in values:
        return []
    pairs = list(zip(values["policy"], values["reference"], strict=True))
    names = sorted(
        {x for mine, other in pairs for x in mine if x in other and x.startswith(INTERVALS)}, key=first_preference
    )
    rows = []
    for name in names:
        gaps = [mine[name] - other[name] for mine, other in pairs if name in mine and name in other]
        found = bootstrap(gaps)
        rows.append(
            [name, f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})", str(len(gaps)), *meaning(name)]
        )
    title = "Policy minus reference, paired by prompt (95 % intervals)"
    return [Table(title, [["", "difference", "prompts", *MEANS], *rows])] if rows else []


def tables_of(
    figures: Mapping[str, float],
    asked: Sequence[Example],
    texts: Mapping[str, Sequence[str]],
    values: Mapping[str, list[dict[str, float]]],
    settings: Mapping[str, Any],
) -> list[Table]:
    """What the report holds of the evaluation besides its picture."""
    systems = [w for w in SYSTEMS if w in texts]
    starts = {name: name.partition("/") for name in figures if not is_bound(name)}
    names = dict.fromkeys(rest for start, _, rest in starts.values() if start in systems)
    shown = sorted(names, key=first_preference)
    held_out = [name for name in starts if name.startswith("val/")]
    tasks = [name for name in starts if name.startswith("tasks/")]
    samples = [
        [instruction(example.prompt), *(f"{texts[w][i]}\n{_scores(values[w][i])}" for w in systems)]
        for i, example in enumerate(asked[:PROMPTS])
    ]
    found = [
        Table(
            f"Responses to {len(asked)} held-out prompts (95 % intervals over prompts)",
            [
                ["", *systems, *MEANS],
                *([name, *(cell(figures, f"{w}/{name}") for w in systems), *meaning(name)] for name in shown),
            ],
        ),
        Table(
            "Held-out pairs",
            [
                ["", "value", "pairs", *MEANS],
                *([n, cell(figures, n), _count(figures, n), *meaning(n)] for n in held_out),
            ],
        ),
        Table("Benchmarks", [["", "value", *MEANS], *([n, _with_error(figures, n), *meaning(n)] for n in tasks)]),
        Table("Samples", [["prompt", *systems], *samples]),
        Table("Settings", [["", "value"], *([name, str(value)] for name, value in settings.items())]),
    ]
    return [table for table in found if len(table.rows) > 1]


def _count(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[f'{name}_n']:.0f}" if f"{name}_n" in figures else ""


def _with_error(figures: Mapping[str, float], name: str) -> str:
    error = f" (standard error {figures[f'{name}_se']:.3f})" if f"{name}_se" in figures else ""
    return cell(figures, name) + error


def scores_of(own: Mapping[str, float]) -> dict[str, float]:
    """What was judged of one text: the objective, rewards and the judge's verdicts."""
    return {name: x for name, x in own.items() if name.startswith(JUDGED)}


def _scores(own: Mapping[str, float]) -> str:
    shown = sorted(scores_of(own).items(), key=lambda item: first_preference(item[0]))
    return f"({', '.join(f'{name} {x:.3g}' for name, x in shown)})" if shown else ""


def markdown(title: str, tables: Sequence[Table], pictures: Mapping[str, str]) -> str:
    """The report with its pictures, paths by title, beside it."""
    parts = [f"# {in_markdown(title)}", *(f"![{name}]({path})" for name, path in pictures.items())]
    for table in tables:
        lines = ["| " + " | ".join(map(in_markdown, row)) + " |" for row in table.rows]
        rule = "|" + "---|" * len(table.rows[0])
        parts.append(f"## {table.title}\n\n" + "\n".join([lines[0], rule, *lines[1:]]))
    return "\n\n".join(parts) + "\n"


def as_html(title: str, tables: Sequence[Table], pictures: Mapping[str, str]) -> str:
    """The report as one file.

    Args:
        pictures: PNGs in base64 by title.
    """
    name = html.escape(title)
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>',
        f"<style>\n{STYLE}</style></head><body>\n<h1>{name}</h1>",
        *(f'<p><img alt="{x}" src="data:image/png;base64,{picture}"></p>' for x, picture in pictures.items()),
    ]
    for table in tables:
        head, *rows = ([html.escape(x) for x in row] for row in table.rows)
        parts.append(f"<h2>{html.escape(table.title)}</h2>\n<table>\n<tr><th>{'</th><th>'.join(head)}</th></tr>")
        parts += [f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows]
        parts.append("</table>")
    return "\n".join([*parts, "</body></html>\n"])


def alpaca_eval(asked: Sequence[Example], outputs: Sequence[str], generator: str) -> list[dict[str, str]]:
    """What `alpaca_eval --model_outputs` reads: instruction, output, generator, and the data's source as dataset."""
    return [
        {"instruction": instruction(e.prompt), "output": output, "generator": generator, "dataset": e.source}
        for e, output in zip(asked, outputs, strict=True)
    ]


def instruction(prompt: Prompt) -> str:
    """What was asked: a single turn as it is, a longer conversation with its roles."""
    if not isinstance(prompt, str) and len(prompt) == 1 and prompt[0].keys() == {"role", "content"}:
        return prompt[0]["content"]
    return as_text(prompt)
