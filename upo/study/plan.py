"""What a study's file means: one complete configuration for each run, checked for names that collide.

A run is a base experiment, changed by dotted keys as on the command line of `upo.fit`: those of the study, then those
of its entry, then one point of the entry's grid or list. Nothing here trains, or imports what trains.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen

from upo.errors import UserError, did_you_mean
from upo.runtime.moved import no_such_file
from upo.runtime.yaml_files import read_yaml

KEYS = ("folder", "generate", "seeds", "baseline", "overrides", "runs", "compare", "league")
ENTRY_KEYS = ("name", "config", "overrides", "grid", "list", "seeds")
COMPARE_KEYS = ("at_kl", "paper", "note")
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


@frozen
class Planned:
    """One run of a study."""

    name: str
    """Without the seed: the entry's name and what its grid or list changes, e.g. `dpo_beta0.1`."""
    entry: str
    """Name of the entry of `runs` that it comes from; runs of one entry are one method at several strengths."""
    seed: int
    base: Path
    """YAML of the experiment that it changes."""
    config: dict[str, Any]
    """Everything that its own YAML says."""
    folder: Path
    """Run folder."""
    file: Path
    """Where its YAML goes."""

    @property
    def label(self) -> str:
        return f"{self.name}_seed{self.seed}"

    def text(self) -> str:
        """The YAML of this run alone."""
        head = f"# {self.label} of the study {self.folder.parent}, from {self.base}\n"
        return head + yaml.safe_dump(self.config, sort_keys=False, default_flow_style=None, width=120)


@frozen
class Study:
    """A study's file, read and expanded."""

    file: Path
    folder: Path
    runs: list[Planned]
    baseline: str | None
    """Name of a run, without its seed."""
    generate: list[dict[str, Any]]
    """Arguments of `upo.generate`, one mapping a preference set."""
    compare: dict[str, Any]
    """Options of `upo.compare`."""
    only_numbers_differ: bool = False
    """Whether the runs of an entry differ in a number alone, so that checking one config of each is enough."""


def expand(content: Mapping[str, Any], file: Path) -> Study:
    """The study that the content of a file means.

    Raises:
        UserError: a key or a file that does not exist, runs of the same name, runs that say the same.
    """
    known(content, KEYS, str(file))
    if not isinstance(content.get("folder"), str):
        raise UserError(f"{file}: give `folder`, where configs, runs and the comparison go")
    folder = Path(content["folder"])
    entries = content.get("runs")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file}: `runs` is a list of mappings with `name` and `config`")
    runs = [run for entry in entries for run in _expand(entry, content, file, folder)]
    _distinct(runs)
    names = list(dict.fromkeys(run.name for run in runs))
    baseline = content.get("baseline")
    if baseline is not None and baseline not in names:
        raise UserError(f"{file}: the baseline `{baseline}` is no run; {did_you_mean(str(baseline), names)}")
    known(content.get("compare") or {}, COMPARE_KEYS, f"{file}, `compare`")
    generate = content.get("generate") or []
    if not all(isinstance(x, dict) and isinstance(x.get("out"), str) for x in generate):
        raise UserError(f"{file}: `generate` is a list of mappings, each with `out`, the file that it writes")
    return Study(file, folder, runs, baseline, generate, content.get("compare") or {})


def load(file: Path) -> dict[str, Any]:
    """A study's YAML; its own `${...}` are resolved, those of the experiments stay as they are."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        content = read_yaml(file)
        plain = OmegaConf.to_container(OmegaConf.create(content or {}), resolve=True)
    except OSError as error:
        raise UserError(f"no such study: {no_such_file(file)}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {str(error).splitlines()[0]}") from error
    if not isinstance(plain, dict):
        raise UserError(f"{file}: a study is a mapping with the keys {', '.join(KEYS)}")
    return plain  # type: ignore[return-value]


def known(given: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Raises a `UserError` where a mapping has other keys than these."""
    for key in given:
        if key not in keys:
            raise UserError(f"{where}: unknown key `{key}`; {did_you_mean(str(key), keys)}")


def _expand(entry: Any, study: Mapping[str, Any], file: Path, folder: Path) -> Iterator[Planned]:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or "config" not in entry:
        raise UserError(f"{file}: each of `runs` is a mapping with `name` and `config`, not {entry!r:.80}")
    where = f"{file}, run `{entry['name']}`"
    known(entry, ENTRY_KEYS, where)
    if not re.fullmatch(r"[\w.+-]+", entry["name"]):
        raise UserError(f"{where}: a name is made of letters, digits and . + - _")
    seeds = entry.get("seeds", study.get("seeds", [0]))
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{where}: `seeds` is a list of integers, e.g. [0, 1, 2]")
    base = next((p for p in (file.parent / entry["config"], Path(entry["config"])) if p.is_file()), None)
    if base is None:
        missing = no_such_file(Path(entry["config"]))
        raise UserError(f"{where}: neither beside {file} nor from here: no such config {missing}")
    start = _beside(read_yaml(base) or {}, base)
    for change in _points(entry, where):
        config = deepcopy(start)
        for key, value in ((study.get("overrides") or {}) | (entry.get("overrides") or {}) | change).items():
            put(config, key, deepcopy(value), where)
        name = entry["name"] + "".join(f"_{named(key, value)}" for key, value in change.items())
        for seed in seeds:
            own, place = deepcopy(config), folder / f"{name}_seed{seed}"
            own["seed_everything"] = seed
            put(own, "trainer.default_root_dir", str(place), where)
            _group_in_wandb(own, folder.name, name, entry["name"], seed)
            yield Planned(name, entry["name"], seed, base, own, place, folder / "configs" / f"{place.name}.yaml")


def _points(entry: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """What each run of an entry changes: the grid's points in order, or the list's."""
    if "grid" in entry and "list" in entry:
        raise UserError(f"{where}: give `grid` or `list`, not both")
    if "list" in entry:
        if not isinstance(entry["list"], list) or not all(isinstance(x, dict) for x in entry["list"]):
            raise UserError(f"{where}: `list` is a list of mappings from dotted keys to values")
        return entry["list"]
    grid = entry.get("grid") or {}
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise UserError(f"{where}: `grid` maps dotted keys to lists of values")
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def put(config: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Sets a dotted key as the command line would: `model.beta` reaches the arguments of the model's class.

    Missing mappings are made; whether the key exists is for the parser to say.
    """
    *parents, last = str(key).split(".")
    node: Any = config
    for part, following in zip(parents, [*parents, last][1:], strict=True):
        node = _arguments(node, part)
        if isinstance(node, list):
            node = node[_place(node, part, key, where)]
            continue
        if isinstance(node.get(part), str) and following != "class_path":  # a class by its short name
            node[part] = {"class_path": node[part]}
        if not isinstance(node.get(part), (dict, list)):
            if node.get(part) is not None and not isinstance(node[part], str):
                raise UserError(f"{where}: `{key}`: {part} is {node[part]!r} in the config and has no keys of its own")
            node[part] = {}
        node = node[part]
    node = _arguments(node, last)
    node[_place(node, last, key, where) if isinstance(node, list) else last] = value


def _arguments(node: Any, part: str) -> Any:
    """Of a class its init_args, unless the class itself is meant."""
    if isinstance(node, dict) and "class_path" in node and part not in CLASS_KEYS:
        return node.setdefault("init_args", {})
    return node


def _place(node: list[Any], part: str, key: str, where: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"{where}: `{key}`: `{part}` should be the place in a list, 0 to {len(node) - 1}")
    return int(part)


def named(key: str, value: Any) -> str:
    """A change as part of a run's name: `beta0.1`; a class, a model or a file by its name alone."""
    last = key.rpartition(".")[2]
    if isinstance(value, str) and last == "class_path":
        return value.rpartition(".")[2]
    if isinstance(value, str) and last == "path":
        return re.sub(r"[^\w.+-]+", "-", Path(value).name)
    shown = value if isinstance(value, str) else json.dumps(value)
    return last + re.sub(r"[^\w.+-]+", "-", shown).strip("-")


def _beside(config: dict[str, Any], base: Path) -> dict[str, Any]:
    """Earlier stages are named relative to their YAML; the run's own YAML lies elsewhere."""
    if isinstance(config.get("after"), list):
        config["after"] = [
            os.path.relpath(base.parent / path) if (base.parent / path).exists() else path for path in config["after"]
        ]
    return config


def _group_in_wandb(config: dict[str, Any], study: str, name: str, entry: str, seed: int) -> None:
    """One W&B group a study, with tags to filter by; what the YAML says itself stays."""
    trainer = config["trainer"]
    given = trainer.get("logger")
    loggers = [{"class_path": x} if isinstance(x, str) else x for x in (given if isinstance(given, list) else [given])]
    ours = [x for x in loggers if isinstance(x, dict) and str(x.get("class_path")).endswith("WandbLogger")]
    for logger in ours:
        logger["init_args"] = {"name": f"{name}_seed{seed}"} | (logger.get("init_args") or {})
        extra = {"group": study, "tags": list(dict.fromkeys([entry, name, f"seed{seed}"]))}
        logger["dict_kwargs"] = extra | (logger.get("dict_kwargs") or {})
    if ours:
        trainer["logger"] = loggers


def _distinct(runs: Sequence[Planned]) -> None:
    """Two runs of one name would share a folder, two of one content would be compared with themselves."""
    folders: dict[Path, Planned] = {}
    contents: dict[str, Planned] = {}
    for run in runs:
        if run.folder in folders:
            raise UserError(f"two runs are called {run.label}; give their entries different names")
        folders[run.folder] = run
        bare = deepcopy(run.config)
        del bare["trainer"]["default_root_dir"]
        bare["trainer"].pop("logger", None)
        twin = contents.setdefault(json.dumps(bare, sort_keys=True, default=str), run)
        if twin is not run:
            raise UserError(f"{twin.label} and {run.label} are the same run; leave one of them out")
