"""Configs parsed as `upo.fit` would, without building anything: mistakes of a study show before its first run."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from upo.cli.main import CLI
from upo.cli.stages import beside, run_folder


class ParserOnly(CLI):
    """The command line whose parser is made, and nothing parsed, seeded or built."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = Namespace(seed_everything=False)

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...


def check(files: Sequence[tuple[str, Path]]) -> tuple[str | None, list[tuple[Path, Path]]]:
    """Parses configs as `upo.fit` would.

    Args:
        files: what to call each config, and its YAML.

    Returns:
        A sentence about the first config that does not parse; the YAMLs and run folders of all earlier stages that
        the configs name, in the order in which they are to be trained.
    """
    parser, stages = ParserOnly([]).parser, {}

    def parse(file: Path) -> Any:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                return parser.parse_args(["--config", str(file)])
            except SystemExit:
                lines = errors.getvalue().strip().splitlines()
        raise ValueError(" ".join(x.removeprefix("error: ") for x in lines[:-1]))

    def visit(config: Any, file: Path) -> None:
        for path in (beside(x, [file]) for x in config.after):
            if not path.exists():
                raise ValueError(f"after: no such file {path}")
            if path not in stages:
                visit(parse(path), path)
                stages[path] = run_folder(path)

    for name, file in files:
        try:
            config = parse(file)
            if config.evaluation is None:
                raise ValueError("it has no `evaluation:`, so there is nothing to compare; add one to the config")
            visit(config, file)
        except ValueError as error:
            return f"{name}: {error}", []
    return None, list(stages.items())
