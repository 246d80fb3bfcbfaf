"""Run folders read, grouped by everything but the seed, ordered by method; means and paired differences."""

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from attrs import define, field, frozen

from upo.comparison.settings import differing, identity, natural, settings_of, short_names, shown
from upo.errors import UserError
from upo.metrics.intervals import Interval, crossed
from upo.runtime.atomic_files import read_json
from upo.runtime.run_folder import MANIFEST, RunPaths, Which

ALIKE = ("judge", "objective", "max_new_tokens", "temperature", "top_p", "seed")
"""Settings of an evaluation that change its figures."""
HEALTH = ("tokens", "words", "ended", "repetition")
"""What tells whether generated text is still whole, prompt by prompt; `distinct_2` joins it, over all prompts."""


@frozen
class Run:
    """One finished run folder."""

    folder: Path
    method: str
    """Class name."""
    seed: int
    settings: dict[str, Any]
    """Everything of the configuration that makes a result, without the seed."""
    family: str
    """Runs of one method at several strengths: the entry of a study, elsewhere the method."""
    evaluation: dict[str, Any]

    @property
    def key(self) -> str:
        return identity(self.settings)

    @property
    def name(self) -> str:
        """The folder's name without its seed."""
        return re.sub(r"_seed\d+$", "", self.folder.resolve().name)

    def values(self, figure: str) -> list[tuple[str, float]]:
        """(prompt, value) of a figure such as `policy/kl` or `val/rewards/accuracies`; empty where not measured."""
        system, _, name = figure.partition("/")
        if system == "val":
            return [(row["prompt"], row[name]) for row in self.evaluation["pairs"] if name in row]
        rows = self.evaluation["prompts"]
        return [(row["prompt"], row[system][name]) for row in rows if name in row.get(system, {})]


@define
class Group:
    """Runs that differ in their seed alone."""

    name: str
    runs: list[Run] = field(factory=list)
    settings: dict[str, str] = field(factory=dict)
    """The hyper-parameters in which groups of its method differ."""
    _means: dict[str, Interval | None] = field(factory=dict)
    _cells: dict[tuple[str, bool], dict[tuple[str, int | None], float]] = field(factory=dict)

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def family(self) -> str:
        return self.runs[0].family

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    def mean(self, figure: str) -> Interval | None:
        """Mean over prompts and seeds; None where no run has the figure."""
        if figure not in self._means:
            rows = [(prompt, run.seed, x) for run in self.runs for prompt, x in run.values(figure)]
            self._means[figure] = _interval(rows)
        return self._means[figure]

    def plain(self, figure: str) -> float | None:
        """Mean over the runs of a figure that is none of single prompts, such as `policy/distinct_2`."""
        found = [run.evaluation["metrics"].get(figure) for run in self.runs]
        known = [x for x in found if x is not None]
        return sum(known) / len(known) if known else None

    def cells(self, figure: str, by_seed: bool = True) -> dict[tuple[str, int | None], float]:
        """Mean by prompt and seed, or by prompt alone."""
        if (figure, by_seed) not in self._cells:
            found: dict[tuple[str, int | None], list[float]] = {}
            for run in self.runs:
                for prompt, x in run.values(figure):
                    found.setdefault((prompt, run.seed if by_seed else None), []).append(x)
            self._cells[figure, by_seed] = {cell: sum(xs) / len(xs) for cell, xs in found.items()}
        return self._cells[figure, by_seed]


def difference(group: Group, figure: str, other: Group, other_figure: str) -> Interval | None:
    """Mean of `figure` minus `other_figure` over what both measured: the same prompt AND the same seed.

    Groups without a common seed are averaged over their seeds first, prompt by prompt. None where nothing is common.
    """
    by_seed = bool(set(group.seeds) & set(other.seeds))
    mine, theirs = group.cells(figure, by_seed), other.cells(other_figure, by_seed)
    return _interval([(prompt, seed, x - theirs[prompt, seed]) for (prompt, seed), x in mine.items()
                      if (prompt, seed) in theirs])  # fmt: skip


def _interval(rows: Sequence[tuple[str, int | None, float]]) -> Interval | None:
    if not rows:
        return None
    prompts, seeds, values = zip(*rows, strict=True)
    return crossed(values, prompts, seeds)


def read_run(folder: Path, checkpoint: Which = "last") -> Run:
    """A finished and evaluated run; nothing that its files name is imported.

    Args:
        checkpoint: whose evaluation is read.

    Raises:
        UserError: no run folder, unfinished, broken, or not evaluated; says which command helps.
    """
    paths = RunPaths(folder)
    if not paths.config.is_file():
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    if not paths.finished:
        raise UserError(
            f"{folder} is unfinished; finish it with: python -m upo.fit --config {paths.config} --ckpt_path last"
        )
    file, option = paths.evaluation, ""
    if checkpoint == "best":
        file, option = paths.of_best.evaluation, " --checkpoint best"
    if not file.is_file():
        raise UserError(f"{folder} is not evaluated yet; run: python -m upo.evaluate {folder}{option} --judge REWARD")
    try:
        config = _config(paths.config)
        method = str(config["model"]["class_path"]).rpartition(".")[2]
        seed = int(config.get("seed_everything") or 0)
        settings = settings_of(config)
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{paths.config} is no configuration of a run ({type(error).__name__}: {reason})") from None
    return Run(folder, method, seed, settings, _entry(folder) or method, _evaluation(file))


def _config(file: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML has it
    return yaml.load(file.read_text(), loader)


def _evaluation(file: Path) -> dict[str, Any]:
    """An evaluation.json that holds what it should."""
    content = read_json(file)
    parts = {"settings": dict, "metrics": dict, "prompts": list, "pairs": list}
    whole = isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in parts.items())
    rows = [*content["prompts"], *content["pairs"]] if whole else []
    if not whole or not all(isinstance(row, dict) and isinstance(row.get("prompt"), str) for row in rows):
        raise UserError(f"{file} is no evaluation of a run; make it again: python -m upo.evaluate {file.parent}")
    return content


def _entry(folder: Path) -> str | None:
    """The study's entry that a run comes from, by the manifest beside its folder."""
    with suppress(OSError, ValueError, KeyError):
        rows = json.loads((folder.parent / MANIFEST).read_text())["runs"]
        return next((row["entry"] for row in rows if Path(row["folder"]).name == folder.name), None)
    return None


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Runs by everything but their seed, in the order in which they came.

    Raises:
        UserError: two runs are the same, seed included.
    """
    groups: dict[str, Group] = {}
    for run in runs:
        group = groups.setdefault(run.key, Group(run.name))
        if run.seed in group.seeds:
            twin = group.runs[group.seeds.index(run.seed)]
            raise UserError(f"{twin.folder} and {run.folder} are the same run with the same seed; name one of them")
        group.runs.append(run)
    return list(groups.values())


def ordered(groups: Sequence[Group]) -> list[Group]:
    """By method, in the order in which methods came, then by the hyper-parameters that differ; names these."""
    found = []
    for family in dict.fromkeys((group.method, group.family) for group in groups):
        own = [group for group in groups if (group.method, group.family) == family]
        keys = differing([group.runs[0].settings for group in groups if group.method == family[0]])
        names = short_names(keys)
        for group in own:
            values = group.runs[0].settings
            group.settings = {names[key]: shown(values[key]) for key in keys if key in values}
        found += sorted(own, key=lambda group: [natural(group.runs[0].settings.get(key)) for key in keys])
    place = {method: i for i, method in enumerate(dict.fromkeys(group.method for group in groups))}
    return sorted(found, key=lambda group: place[group.method])


def unlike(runs: Sequence[Run]) -> list[str]:
    """Evaluation settings in which the runs differ, so that their figures cannot be compared."""
    found = [name for name in ALIKE if len({json.dumps(run.evaluation["settings"].get(name)) for run in runs}) > 1]
    references = {_reference(run) for run in runs if run.values("policy/kl")}
    return [*found, "reference"] if len(references) > 1 else found


def _reference(run: Run) -> Any:
    """The model that KL and wins are measured against."""
    given = run.evaluation["settings"].get("reference")
    return given or run.settings.get("model.reference.path") or run.settings.get("model.policy.path")


def figures(runs: Sequence[Run]) -> list[str]:
    """What is compared, without the system: what is traded against each other first, then rewards and length."""
    measured = {name for run in runs for row in run.evaluation["prompts"][:1] for name in row.get("policy", {})}
    rewards = sorted(name for name in measured if name.startswith("rewards/"))
    return ["win_rate_vs_chosen", "win_rate_vs_reference", "objective", "kl", *rewards, *HEALTH]
