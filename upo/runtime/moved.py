"""Old import paths: what configs, checkpoints and notebooks made before a move name is found where it is now.

`upo/__init__.py` calls `install`. An old module, once asked for, is an alias that looks names up in the new ones and
says so in one line.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "upo.models.adapter_files": (
        "upo.models.adapter_files",
        "upo.models.merged_adapter",
    ),
    "upo.models.adapters": (
        "upo.models.lora",
        "upo.models.adapters",
    ),
    "upo.evaluation.benchmarks": ("upo.evaluation.benchmarks",),
    "upo.models.checkpoint": (
        "upo.evaluation.runs",
        "upo.models.checkpoint",
        "upo.models.checkpoint_files",
    ),
    "upo.cli.command": ("upo.cli.command",),
    "upo.models.quantization": ("upo.models.quantization",),
    "upo.models.head": ("upo.models.head",),
    "upo.evaluation.held_out_pairs": ("upo.evaluation.held_out_pairs",),
    "upo.evaluation.implicit": ("upo.evaluation.implicit",),
    "upo.evaluation.kept": ("upo.evaluation.kept",),
    "upo.models.loading": ("upo.models.loading",),
    "upo.callbacks.loggers": ("upo.callbacks.loggers",),
    "upo.models.logps": ("upo.models.logps",),
    "upo.evaluation.measure": ("upo.evaluation.measure",),
    "upo.methods.common.base": ("upo.methods.common.base",),
    "upo.methods.common.catalog": ("upo.methods.common.catalog",),
    "upo.methods.common.families": ("upo.methods.common.families",),
    "upo.methods.common.fitted_value": ("upo.methods.common.fitted_value",),
    "upo.methods.common.likelihood": ("upo.methods.common.likelihood",),
    "upo.methods.common.ranges": ("upo.methods.common.ranges",),
    "upo.methods.common.stepwise": ("upo.methods.common.stepwise",),
    "upo.methods.common.term": ("upo.methods.common.term",),
    "upo.methods.common.value_head": ("upo.methods.common.value_head",),
    "upo.runtime.flops": ("upo.runtime.flops",),
    "upo.runtime.optimizers": ("upo.runtime.optimizers",),
    "upo.cli.parser": ("upo.cli.parser",),
    "upo.models.policy": ("upo.models.policy",),
    "upo.runtime.lightning_patches": ("upo.runtime.lightning_patches",),
    "upo.runtime.collectives": ("upo.runtime.collectives",),
    "upo.models.reference": ("upo.models.reference",),
    "upo.models.stored_reference": ("upo.models.stored_reference",),
    "upo.evaluation.report": ("upo.evaluation.report",),
    "upo.evaluation.report_pictures": ("upo.evaluation.report_pictures",),
    "upo.data.annotate": ("upo.data.annotate",),
    "upo.data.rewards": ("upo.data.rewards",),
    "upo.evaluation.safety_figures": ("upo.evaluation.safety_figures",),
    "upo.rollout.sampling": ("upo.rollout.sampling",),
    "upo.parallel.sharding": ("upo.parallel.sharding",),
    "upo.cli.stages": ("upo.cli.stages",),
    "upo.models.store": ("upo.models.store",),
    "upo.models.store_filling": ("upo.models.store_filling",),
    "upo.parallel.strategy": ("upo.parallel.strategy",),
    "upo.evaluation.tables": ("upo.evaluation.tables",),
    "upo.data.view": ("upo.data.view",),
    "upo.rollout.vllm": ("upo.rollout.vllm",),
    "upo.evaluation.win_rates": ("upo.evaluation.win_rates",),
    "upo.evaluation.systems": ("upo.evaluation.systems",),
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
