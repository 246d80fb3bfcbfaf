"""What is changed in the libraries below us, each for one figure.

A patch whose target is gone does nothing: a run is slower then, and the same otherwise. Importing this module imports
nothing heavy, since two of the patches are about importing.
"""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any


@contextmanager
def frozen_imports() -> Iterator[None]:
    """Around imports: the collector neither runs nor looks, ever, through what they make.

    Defeats: CPython's collector, which runs a hundred times while some 4,000 modules are imported (Lightning,
    torchmetrics, transformers) and finds next to nothing. Figure: a sixth of the start of `upo.fit`. In a process that
    forks, it also leaves the children's pages shared. At its end a process may look again: libraries that count what is
    left of theirs (nanobind, below triton) print a screenful otherwise.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        gc.freeze()
        atexit.register(gc.unfreeze)


@contextmanager
def without_scipy_signal() -> Iterator[None]:
    """Around imports: `import scipy.signal` loads nothing, unless more of it is used than a name that it lacks.

    Defeats: torchmetrics 1.9, functional/audio/__init__.py:37-41, which `import torchmetrics` runs: it loads
    scipy.signal to give it back `hamming`, for a package that we do not use. Figure: a sixth of the start of `upo.fit`.
    Guard: whoever reads anything else gets the real module.
    """
    if "scipy.signal" in sys.modules:
        yield
        return
    stand_in = _StandIn("scipy.signal")
    sys.modules["scipy.signal"] = stand_in
    try:
        yield
    finally:
        if sys.modules.get("scipy.signal") is stand_in:
            del sys.modules["scipy.signal"]


class _StandIn(ModuleType):
    """A module that is loaded when something is looked up in it."""

    hamming = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # what inspection asks of every module, not `import a.b.c`
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def quick_logs() -> None:
    """From now on `self.log` moves a value's record to the device only where it is on another one.

    Defeats: Lightning 2.6, pytorch/trainer/connectors/logger_connector/result.py:412, where each logged value has its
    whole record looked through by `_ResultMetric.to` (:306). Figure: of 22 values a step 11 of 16 ms on two cores.
    Guard: another name or other fields of the record, and Lightning does what it always does.
    """
    try:
        from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
    except ImportError:
        return
    move = vars(_ResultMetric).get("to")
    if move is None or hasattr(move, "__wrapped__"):  # gone, or done already
        return

    @wraps(move)
    def move_if_elsewhere(record: Any, device: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(record, "is_tensor", False) and getattr(getattr(record, "value", None), "device", None) == device:
            return record
        return move(record, device, *args, **kwargs)

    _ResultMetric.to = move_if_elsewhere
