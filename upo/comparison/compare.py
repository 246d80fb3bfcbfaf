"""Runs side by side: means, paired differences, fronts, and the files that show them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upo.errors import UserError

if TYPE_CHECKING:
    from upo.comparison.runs import Group
    from upo.metrics.intervals import Interval
    from upo.runtime.run_folder import Which

ACCURACY = "val/rewards/accuracies"


def compare(
    runs: Sequence[Path],
    baseline: Path | None = None,
    seeds: int = 1,
    jobs: int = 1,
    at_kl: Sequence[float] = (),
    paper: bool = False,
    out: Path | None = None,
    note: str | None = None,
    checkpoint: "Which" = "last",
) -> dict:
    """What `python -m upo.compare` does; returns the content of comparison.json.

    Args:
        note: a sentence that stands above all tables, e.g. what they do not show.
        checkpoint: whose evaluation is read of each run; the best one's lies in RUN/best.
    """
    from upo.comparison.runs import figures, grouped, ordered, read_run, unlike
    from upo.runtime.atomic_files import write_json
    from upo.study.experiments import folders_of, train_missing

    named = [run for run in runs if not run.name.startswith("comparison.")]  # `runs/*` catches earlier results too
    folders = [folder for run in named for folder in folders_of(run, seeds)]
    if not folders:
        raise UserError("no runs to compare")
    train_missing(named, seeds, jobs)
    read = [read_run(folder, checkpoint) for folder in folders]
    groups = grouped(read)
    start = read_run(folders_of(baseline, seeds)[0], checkpoint).key if baseline is not None else groups[0].runs[0].key
    base = next((group for group in groups if group.runs[0].key == start), None)
    if base is None:
        raise UserError(f"--baseline {baseline} is none of the runs; name it among them too")
    groups = ordered(groups)
    notes = [note] if note else []
    if different := unlike(read):
        notes.append(f"The runs were evaluated with different {', '.join(different)}: evaluate them alike.")
    content = table_of(groups, base, figures(read)) | {"notes": notes}
    if apart := [name for name, values in content["minus_baseline"].items() if not values]:
        notes.append(f"No difference from {base.name} for {', '.join(apart)}: they share no evaluated prompt with it.")
    for text in notes:
        print(f"note: {text}", file=sys.stderr)
    out = out or folders[0].parent
    out.mkdir(parents=True, exist_ok=True)
    content |= fronts_of(groups, base, figures(read), at_kl)
    if paper:
        from upo.comparison.paper import beside_published

        content["published"] = beside_published(groups)
    write_json(out / "comparison.json", content)
    from upo.comparison.curves import draw_curves
    from upo.comparison.page import page
    from upo.comparison.pictures import colors_of, draw_fronts
    from upo.comparison.view import markdown, print_comparison

    print_comparison(content)
    colors = colors_of(group.family for group in groups)
    pictures = [
        name
        for name, drawn in (
            ("comparison.png", draw_fronts(content["fronts"], colors, out / "comparison.png")),
            ("comparison.curves.png", draw_curves(groups, out / "comparison.curves.png")),
        )
        if drawn
    ]
    (out / "comparison.md").write_text(markdown(content, pictures))
    (out / "comparison.html").write_text(page(content), encoding="utf-8")
    print(", ".join(str(out / name) for name in ("comparison.json", "comparison.md", "comparison.html", *pictures)))
    return content


def fronts_of(
    groups: "Sequence[Group]", base: "Group", names: Sequence[str], at_kl: Sequence[float]
) -> dict[str, list[dict[str, Any]]]:
    """Fronts of all methods, and their figures at equal KL; a baseline there is its method at all strengths."""
    from upo.comparison import equal_kl
    from upo.comparison.fronts import fronts

    families: dict[str, list[Group]] = {}
    for group in groups:
        families.setdefault(group.family, []).append(group)
    return {
        "fronts": fronts(groups, names),
        "at_kl": [equal_kl.at_kl(families, names, x, base.family) for x in at_kl],
    }


def table_of(groups: "Sequence[Group]", base: "Group", names: Sequence[str]) -> dict[str, Any]:
    """Means by row and figure, then differences: from each run's own reference, and from the baseline."""
    from upo.comparison.runs import difference

    def means(group: "Group", system: str) -> dict[str, Any]:
        found = _plain({name: group.mean(f"{system}/{name}") for name in names})
        distinct = group.plain(f"{system}/distinct_2")
        return found | ({} if distinct is None else {"distinct_2": {"mean": distinct}})

    reference = means(base, "reference")
    rows = [{"name": "reference", "method": "", "settings": {}, "seeds": [], "figures": reference}] if reference else []
    for group in groups:
        figures = means(group, "policy") | _plain({ACCURACY: group.mean(ACCURACY)})
        folders = [str(run.folder) for run in group.runs]
        rows.append(
            {
                "name": group.name,
                "method": group.method,
                "family": group.family,
                "settings": group.settings,
                "seeds": group.seeds,
                "runs": folders,
                "figures": figures,
            }
        )
    own = {g.name: {n: difference(g, f"policy/{n}", g, f"reference/{n}") for n in names} for g in groups}
    against = {
        g.name: {n: difference(g, f"policy/{n}", base, f"policy/{n}") for n in names}
        | {ACCURACY: difference(g, ACCURACY, base, ACCURACY)}
        for g in groups
        if g is not base
    }
    return {
        "figures": [*names, "distinct_2", ACCURACY],
        "rows": rows,
        "minus_reference": {name: plain for name, values in own.items() if (plain := _plain(values))},
        "baseline": base.name,
        "minus_baseline": {name: _plain(values) for name, values in against.items()},
    }


def _plain(intervals: "dict[str, Interval | None]") -> dict[str, dict[str, float]]:
    """Intervals as JSON, without those that were not measured."""
    return {
        name: {"mean": x.mean, "low": x.low, "high": x.high, "n": x.n} for name, x in intervals.items() if x is not None
    }
