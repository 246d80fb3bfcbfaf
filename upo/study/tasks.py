"""What a study does in forked processes; imported by the parent too, so what is heavy is imported where it is used."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from upo.runtime.run_folder import RunPaths


def fit(args: Sequence[str]) -> None:
    """`python -m upo.fit` with these arguments, also for the further ranks that Lightning starts by that command."""
    import __main__
    from upo.cli.main import main

    sys.argv, __main__.__spec__ = ["upo.fit", *args], find_spec("upo.fit")
    main(args)


def train(config: Path, folder: Path, options: Sequence[str] = ()) -> None:
    """A run from its YAML: from the beginning, or from its newest checkpoint.

    Args:
        options: further arguments of `upo.fit`.
    """
    from upo.models.checkpoint_files import latest

    fit(["--config", str(config), *options, *(["--ckpt_path", "last"] if latest(folder) else [])])


def stage(config: Path, folder: Path) -> None:
    """An earlier stage of several runs: trained once, and exported where they look for it."""
    from upo.models.export import export

    run = RunPaths(folder)
    if not run.finished:
        train(config, folder)
    export(folder, run.export)


def generate(arguments: Path) -> None:
    """A preference set from a YAML with the arguments of `upo.generate`."""
    from upo.cli.command import command
    from upo.rollout.preference_set import generate as function

    command(function, "generate", ["--config", str(arguments)], positional=False)


def check(files: Sequence[tuple[str, Path]]) -> tuple[str | None, list[tuple[Path, Path]]]:
    """See upo.study.check."""
    from upo.study.check import check as function

    return function(files)
