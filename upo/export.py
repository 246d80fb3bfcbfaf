"""Hugging Face folders from checkpoints: `python -m upo.export runs/quickstart my_model`."""

from upo.cli.command import command
from upo.models.export import export

if __name__ == "__main__":
    command(export, "export")
