"""Argument parser whose errors fit into three lines and name the nearest known key."""

import inspect
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NoReturn

from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf.errors import OmegaConfBaseException

from upo.cli.habits import habit
from upo.errors import nearest
from upo.runtime.class_paths import no_class, safe_parsing


class ShortErrors(LightningArgumentParser):
    """Stock LightningCLI answers a mistyped key with 50 lines of usage; this one with the sentence and a hint."""

    def __init__(self, *args: Any, **kwargs: Any):
        # a run has no such fields; looking for them in the source of every class takes a second at each start
        set_parsing_settings(docstring_parse_attribute_docstrings=False)
        safe_parsing()
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)  # a mistyped option must not be another one

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """`--overwrite` and `--allow_changes` need no value."""
        given = list(sys.argv[1:] if args is None else args)
        for i, (arg, following) in enumerate(pairwise([*given, "--"])):
            if arg in ("--overwrite", "--allow_changes") and following.startswith("--"):
                given[i] = f"{arg}=true"
        try:
            config = super().parse_args(given, *rest, **options)
            for key, number in numbers_of(config):
                if not math.isfinite(number):
                    self.error(f"{key} is {number}; give a finite number")
        except OmegaConfBaseException as error:  # ${...} of nothing
            self.error(str(error), error)
        if wrong := no_class(config):
            self.error(wrong)
        return config

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # nested parsers: the outermost one prints
            super().error(message, ex)
        print("\n".join(shorten(str(message), self)), file=sys.stderr)
        sys.exit(2)


def numbers_of(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """All floats of a config with their dotted keys, as a command line would name them."""
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, Namespace | Mapping):
        for name, inner in (vars(value) if isinstance(value, Namespace) else value).items():
            yield from numbers_of(inner, key if name == "init_args" else f"{key}.{name}".strip("."))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from numbers_of(inner, f"{key}[{i}]")


def shorten(message: str, parser: Any) -> list[str]:
    """The key and the sentence that say what is wrong, without type unions and tracebacks, and a hint: three lines."""
    lines = [line for line in message.splitlines() if line.strip() and "NoneType" not in line]
    lines = [line for line in lines if not NOISE.search(line)] or lines
    telling = [i for i, line in enumerate(lines) if TELLING.search(line)]
    listed = next((i for i, line in enumerate(lines) if line.lstrip().startswith("- ")), 0)
    chosen = max(telling, key=lambda i: len(lines[i]) - len(lines[i].lstrip(" -")), default=listed)
    keys = [key for line in lines[: chosen + 1] for key in re.findall(r'Parser key "([\w.]+)"', line)]
    keys += re.findall(r"^ *full_key: ([\w.\[\]]+)$", message, re.M)  # of an interpolation
    sentence = re.sub(r'^[ -]*(Parser key "[\w.]+":)?\s*', "", lines[chosen])
    sentence = sentence.replace("Expected a dot import path string:", "unknown class")
    for line in lines[chosen + 1 :]:  # behind "Problem with given class_path 'x':" and places comes the cause
        if not sentence.endswith(":"):
            break
        sentence = f"{sentence} {line.strip(' -')}"
    sentence = re.sub(r"Type typing\.Callable\[.*\] expects a function or a callable class: ", "", sentence)
    if ABSTRACT in message:
        sentence = "class_path is missing; it names the method"
    where = f"{'.'.join(keys)}: " if keys else ""
    result = [f"error: {where}{sentence[:300]}"]
    known = known_names(parser)
    named = re.findall(r"(?:Option|option|unknown class|arguments:|attribute) [\"'`-]*([\w.+-]+)", sentence)
    for word in (w.partition("=")[0].split(".")[-1].strip("-") for w in named):
        near = None if word in known else nearest(word, known)
        if hint := habit(word) or (near and f"did you mean `{near}`?"):
            result.append(hint)
    return [*result[:2], "see --help, or --model.help CLASS for a method's arguments"]


ABSTRACT = "Problem with given class_path 'upo.methods.common.base.Method'"
"""What a `model:` without a class is taken for."""

NOISE = re.compile(r"Expected a path but .* either not accessible or invalid")
"""What is said of every value that may also be the path of a file."""

TELLING = re.compile(
    r"not accepted|does not accept|Expected|Not of type|does not exist|unrecognized|required|import path|cannot|"
    r"Unable|Problem|not found|not correspond|expects|has no attribute|interpolation|mapping|expected",
)


def known_names(parser: Any) -> set[str]:
    """Every key and class name that a config may hold."""
    import torch

    import upo.methods
    import upo.rewards
    from upo.data.module import PreferenceData
    from upo.data.source import Source
    from upo.models.policy import LoRA, Policy

    names = {part for action in parser._actions for part in str(action.dest).split(".")}
    classes = [getattr(package, name) for package in (upo.methods, upo.rewards) for name in package.__all__]
    for cls in [*filter(inspect.isclass, classes), PreferenceData, Source, Policy, LoRA]:
        for base in cls.__mro__:
            names |= set(inspect.signature(base.__init__).parameters) if "__init__" in vars(base) else set()
    names |= {*upo.methods.__all__, *upo.rewards.__all__, *torch.optim.__all__, *torch.optim.lr_scheduler.__all__}
    names |= {"class_path", "init_args"}
    return names - {"self", "args", "kwargs"}
