"""Files and folders that are complete or not there, whenever a command is killed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from upo.errors import UserError


@contextmanager
def written_at_once(path: Path, *, synced: bool = False, shared: bool = False) -> Iterator[Path]:
    """Gives a path to write a file or a folder at; at the end it takes the name `path`, in place of what has it.

    A killed command leaves a hidden file beside `path`, which the next one replaces; a failed one leaves nothing.

    Args:
        synced: wait until a file's content is on the disk before it gets its name: a crash of the machine cannot leave
            an empty one.
        shared: several processes may write the same content at the same time.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial") if shared else partial_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
        yield partial
    except BaseException:
        _remove(partial)
        raise
    if synced:
        sync(partial)
    put_in_place(partial, path)


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, at once."""
    with written_at_once(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """A JSON file, at once, with each key and each item of a list on a line of its own."""
    write_text(path, _lines(values) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it is broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken ({str(error).splitlines()[0][:100]}); make it again, or remove it") from None


def partial_of(path: Path) -> Path:
    """Where that lies which is to become `path`, or was it: beside it, on the same file system, hidden."""
    return path.with_name(f".{path.name}.partial")


def remove_partials(folder: Path) -> None:
    """Removes what killed commands have left in a folder that only one of them writes to."""
    for partial in folder.glob(partial_of(folder / "*").name):
        _remove(partial)


def put_in_place(partial: Path, path: Path) -> None:
    """Gives a complete file or folder its name; a file is never missing in between."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif partial.is_dir():
        path.unlink(missing_ok=True)
    os.replace(partial, path)


def sync(path: Path) -> None:
    """Waits until a file's content, or what a folder lists, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lines(values: Any, margin: str = "") -> str:
    """JSON with each key and each item of a list on a line of its own; thousands of items are written fast."""
    inner = margin + "  "
    if isinstance(values, dict) and values:
        rows = [f"{inner}{json.dumps(str(key))}: {_lines(value, inner)}" for key, value in values.items()]
        return "{\n" + ",\n".join(rows) + f"\n{margin}}}"
    if isinstance(values, list | tuple) and values:
        return "[\n" + ",\n".join(inner + json.dumps(item) for item in values) + f"\n{margin}]"
    return json.dumps(values)
