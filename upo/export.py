"""Hugging Face folders from checkpoints: `python -m upo.export runs/quickstart my_model`."""

from collections.abc import Sequence

from upo.cli.command import command
from upo.models.export import export


def main(args: Sequence[str] | None = None) -> None:
    """Runs `export` with the arguments of a command line."""
    command(export, "export", args)


if __name__ == "__main__":
    main()
