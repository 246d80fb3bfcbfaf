"""The terminal that tables are printed on."""

from rich.console import Console


def wide_console() -> Console:
    """The terminal; in a file, wide enough for a table."""
    console = Console()
    return console if console.is_terminal else Console(width=130)
