"""Old import paths: what configs, checkpoints and notebooks made before a move name is found where it is now.

`upo/__init__.py` calls `install`. An old module, once asked for, is an alias that looks names up in the new ones and
says so in one line. YAMLs of experiments moved too, from experiments/NAME.yaml to experiments/FOLDER/NAME.yaml.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "upo.adapter_files": (
        "upo.models.adapter_files",
        "upo.models.merged_adapter",
    ),
    "upo.adapters": (
        "upo.models.lora",
        "upo.models.adapters",
    ),
    "upo.benchmarks": ("upo.evaluation.benchmarks",),
    "upo.checkpoint": (
        "upo.evaluation.runs",
        "upo.models.checkpoint",
        "upo.models.checkpoint_files",
    ),
    "upo.command": ("upo.cli.command",),
    "upo.four_bits": ("upo.models.quantization",),
    "upo.head": ("upo.models.head",),
    "upo.held_out_pairs": ("upo.evaluation.held_out_pairs",),
    "upo.implicit": ("upo.evaluation.implicit",),
    "upo.kept": ("upo.evaluation.kept",),
    "upo.loading": ("upo.models.loading",),
    "upo.loggers": ("upo.callbacks.loggers",),
    "upo.logps": ("upo.models.logps",),
    "upo.measure": ("upo.evaluation.measure",),
    "upo.methods.base": ("upo.methods.common.base",),
    "upo.methods.catalog": ("upo.methods.common.catalog",),
    "upo.methods.families": ("upo.methods.common.families",),
    "upo.methods.fitted_value": ("upo.methods.common.fitted_value",),
    "upo.methods.likelihood": ("upo.methods.common.likelihood",),
    "upo.methods.ranges": ("upo.methods.common.ranges",),
    "upo.methods.stepwise": ("upo.methods.common.stepwise",),
    "upo.methods.term": ("upo.methods.common.term",),
    "upo.methods.value_head": ("upo.methods.common.value_head",),
    "upo.models.store_filling": ("upo.models.precompute",),
    "upo.operations": ("upo.runtime.flops",),
    "upo.optimizers": ("upo.runtime.optimizers",),
    "upo.parser": ("upo.cli.parser",),
    "upo.policy": ("upo.models.policy",),
    "upo.quick_logs": ("upo.runtime.lightning_patches",),
    "upo.ranks": ("upo.runtime.collectives",),
    "upo.reference": ("upo.models.reference",),
    "upo.reference_store": ("upo.models.stored_reference",),
    "upo.report": ("upo.evaluation.report",),
    "upo.report_pictures": ("upo.evaluation.report_pictures",),
    "upo.rewards.annotate": ("upo.data.annotate",),
    "upo.rewards.base": ("upo.data.rewards",),
    "upo.safety_figures": ("upo.evaluation.safety_figures",),
    "upo.sampling": ("upo.rollout.sampling",),
    "upo.shards": ("upo.parallel.sharding",),
    "upo.stages": ("upo.cli.stages",),
    "upo.store": ("upo.models.store",),
    "upo.store_filling": ("upo.models.precompute",),
    "upo.strategy": ("upo.parallel.strategy",),
    "upo.tables": ("upo.evaluation.tables",),
    "upo.view": ("upo.data.view",),
    "upo.vllm_sampling": ("upo.rollout.vllm",),
    "upo.win_rates": ("upo.evaluation.win_rates",),
    "upo.writers": ("upo.evaluation.systems",),
}
"""Old module -> the new ones that hold its names, the first one that has a name counts."""


class Alias(ModuleType):
    """A module that has moved."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for place in MOVED[self.__name__]:
                if hasattr(module := import_module(place), name):
                    return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has moved to {MOVED[self.__name__][0]} and has no {name!r}")


class MovedFinder(MetaPathFinder, Loader):
    """Finds the modules of `MOVED` after everything else has failed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Alias(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        print(f"{module.__name__} has moved to {MOVED[module.__name__][0]}; the old path still works", file=sys.stderr)


def install() -> None:
    """From now on old paths can be imported."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())


def present_path(class_path: Any) -> Any:
    """Where a class is now, from any of its paths; what cannot be imported stays as it is."""
    module, _, name = str(class_path).rpartition(".")
    places = [place for place in MOVED.get(module, ()) if hasattr(import_module(place), name)]
    return f"{places[0]}.{name}" if places else class_path


def file_below(path: Path) -> Path | None:
    """The one file that has the name of a missing `path` and lies one folder further down, if there is exactly one."""
    found = [] if path.exists() else list(path.parent.glob(f"*/{path.name}"))
    return found[0] if len(found) == 1 else None


def no_such_file(path: Path) -> str:
    """For the end of an error: the path that is not there and, where it is known, where the file is now."""
    found = file_below(path)
    return str(path) if found is None else f"{path}; did you mean {found}?"
