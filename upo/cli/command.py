"""From a function with a docstring to `python -m upo.NAME`: arguments are options, mistakes give short errors."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jsonargparse import ActionYesNo, ArgumentParser, auto_cli, set_parsing_settings

from upo.errors import short_errors
from upo.runtime.class_paths import no_class, safe_parsing


class ShortErrors(ArgumentParser):
    """One sentence instead of a page of usage, and `--overwrite` without a value."""

    def __init__(self, *args: Any, **kwargs: Any):
        set_parsing_settings(docstring_parse_attribute_docstrings=True)  # dataclasses have their help below the fields
        safe_parsing()
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)  # a mistyped option must not be another one

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        config = super().parse_args(*args, **kwargs)
        if wrong := no_class(config):
            self.error(wrong)
        return config

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("type") is bool and kwargs.get("default") is False:
            kwargs["action"] = ActionYesNo(no_prefix=None)
            del kwargs["type"]
        return super().add_argument(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # nested parsers: the outermost one prints
            super().error(message, ex)
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        print(f"error: {' '.join(lines)[:400]}\nsee {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def command(
    function: Callable[..., Any], name: str, args: Sequence[str] | None = None, *, positional: bool = True
) -> None:
    """Runs `function` with the arguments of the command line `python -m upo.<name>`.

    Args:
        positional: whether arguments without a default are given by their place instead of as `--name value`.
    """
    with short_errors():
        auto_cli(
            function,
            args=None if args is None else list(args),
            as_positional=positional,
            parser_class=ShortErrors,
            prog=f"python -m upo.{name}",
        )
