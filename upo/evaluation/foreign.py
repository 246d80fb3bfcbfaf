"""Run folders that somebody else has made: their configuration is data, and what in it is code needs `--trust`.

Classes are restricted while the configuration is parsed (upo.runtime.class_paths); here it is what classes of this
package call by name (a reward that is a function, a tokenizer or data source that a function makes), and a judge that
sends texts and a key to an address.
"""

import pkgutil
import re
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from upo.errors import UserError
from upo.judges.chat import ChatJudge
from upo.models.policy import Policy
from upo.rewards.function import Function
from upo.runtime.class_paths import TRUST, specs

OURS = "upo.data.sources."
"""What functions may be named without trust."""


def check_foreign(config: Namespace, file: Path) -> None:
    """Raises a `UserError` where a parsed configuration names a function that is not ours, or an address."""
    for place, spec in specs(config):
        kind, given = pkgutil.resolve_name(spec["class_path"]), spec.get("init_args") or Namespace()
        if issubclass(kind, Function):
            _check_function(place, str(given.get("path")).replace(":", "."), file)
        elif issubclass(kind, Policy):
            _check_tokenizer(place, given, file)
        elif issubclass(kind, ChatJudge) and given.get("endpoint") is not None:
            raise UserError(
                f"{file}: {place} sends texts, and the key in ${given.get('key')}, to {given['endpoint']}; {TRUST}"
            )
    _check_benchmarks(config.evaluation, file)
    for source in config.data.sources:
        name = source["name"] if isinstance(source, dict | Namespace) else source.name
        if "." in name:
            _check_function("data.sources", name, file)


def _check_tokenizer(place: str, policy: Any, file: Path) -> None:
    """As `load_tokenizer` reads it: a name with a dot that is no path is looked up as a function first."""
    name = str(policy.get("tokenizer") or policy.get("path"))
    if "." in name and "/" not in name and not Path(name).exists():
        _check_function(f"{place}.tokenizer", name, file)


def _check_benchmarks(evaluation: Any, file: Path) -> None:
    """A task's YAML may name code; those that come with the harness have a plain name."""
    files = [x for x in evaluation.tasks or [] if not re.fullmatch(r"[\w-]+", x)]
    folders = [x for x in (evaluation.harness.include_path,) if x is not None]
    if named := files + folders:
        raise UserError(f"{file}: evaluation names benchmarks in {named[0]}, which may be code; {TRUST}")


def _check_function(place: str, path: str, file: Path) -> None:
    if not path.startswith(OURS):
        raise UserError(f"{file}: {place} names the code `{path}`; {TRUST}")
