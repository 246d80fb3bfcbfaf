"""Any Python function as a reward."""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

from upo.data.example import Prompt
from upo.data.rewards import Reward, checked
from upo.errors import UserError, did_you_mean


class Function(Reward):
    """The values of a Python function `(prompts, responses) -> floats`, one finite float a response.

    Range, unit and direction are the function's own; UPO maximises the weighted sum, so larger must mean
    better (or the weight must be negative). The function must be deterministic: values are cached until its
    file changes.
    """

    def __init__(self, path: str):
        """
        Args:
            path: import path, `package.module:name` or `package.module.name`; modules beside the command are
                found.
        """
        self.path = path
        self.function = _load(path)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return checked(self.path, self.function(prompts, responses), len(responses))

    def fingerprint(self) -> str:
        """Path and content of the file that defines the function; what that file imports is not seen."""
        try:
            source = Path(inspect.getsourcefile(inspect.unwrap(self.function))).read_bytes()
        except (TypeError, OSError):  # a callable object, or compiled code
            owner = importlib.import_module(type(self.function).__module__)
            source = Path(getattr(owner, "__file__", None) or importlib.__file__).read_bytes()
        return f"Function 1 {self.path} {hashlib.sha256(source).hexdigest()}"


def _load(path: str) -> Callable:
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not module_name:
        raise UserError(f"reward function `{path}`: give an import path such as `package.module:name`")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"reward function `{path}`: cannot import `{module_name}`: {error}") from error
    function = getattr(module, name, None)
    if function is None:
        hint = did_you_mean(name, _public(module))
        raise UserError(f"reward function `{path}`: `{module_name}` has no `{name}`. {hint}")
    if inspect.isclass(function) or not callable(function):
        raise UserError(f"reward function `{path}` is no function: give one that takes (prompts, responses)")
    return function


def _public(module) -> list[str]:
    return [name for name, value in vars(module).items() if inspect.isroutine(value) and not name.startswith("_")]
