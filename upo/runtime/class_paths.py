"""What a YAML may name by class path: checked when it is parsed, before anything is called.

jsonargparse compares a class with the type of its place. Left to us is a function where a callable is wanted (an
optimizer, a scheduler), which it would call at once, whatever it returns: a class path names a class. What a user's own
YAML names otherwise is code by design; that of a run folder that somebody else has made is data.
"""

import inspect
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, _common, set_parsing_settings

from upo.errors import UserError

KNOWN = ("upo", "torch.optim", "bitsandbytes.optim", "torchao.optim", "lightning")
"""Packages whose classes the configuration of anybody's run may name."""

TRUST = "if you trust where it comes from, add --trust"


def safe_parsing() -> None:
    """Settings of all parsers: no class path leads to commands, imports or files (os, subprocess, importlib, ...), and
    nothing is made of what looks like a class path where any value may stand."""
    set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=[])


def no_class(config: Any) -> str | None:
    """What is wrong with a parsed configuration in which a class path names something else than a class."""
    for place, spec in specs(config):
        if not inspect.isclass(pkgutil.resolve_name(spec["class_path"])):
            return f"{place}: `{spec['class_path']}` is no class; a class path names a class"
    return None


def specs(config: Any, key: str = "") -> Iterator[tuple[str, Namespace]]:
    """Everything with a class path in a parsed configuration, and where it stands."""
    if isinstance(config, Namespace):
        if isinstance(config.get("class_path"), str):
            yield key, config
        items = [(name, value) for name, value in vars(config).items()]
    elif isinstance(config, dict):
        items = list(config.items())
    elif isinstance(config, list | tuple):
        items = list(enumerate(config))
    else:
        return
    for name, value in items:
        yield from specs(value, f"{key}.{name}".removeprefix(".").replace(".init_args", ""))


@contextmanager
def only_known(config: Path) -> Iterator[None]:
    """Inside, parsers refuse class paths outside of `KNOWN` before they import anything.

    Args:
        config: the file that is read, for the error.

    Raises:
        UserError: names the class, and says what to do.
    """
    before = dict(_common.parsing_settings)  # settings can only be added to
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(KNOWN))
    try:
        yield
    except Exception as error:
        if found := re.search(r"Importing '([\w.]+)' is not allowed", str(error)):
            raise UserError(f"{config} names `{found[1]}`, which is none of {', '.join(KNOWN)}; {TRUST}") from None
        raise
    finally:
        _common.parsing_settings.update(before)
