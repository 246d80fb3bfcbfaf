"""Room on disks: asked for before something large is written, and said in a sentence where it ends on the way."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upo.errors import UserError, full_disk


def size(bytes_: float) -> str:
    """In GiB, below one in MiB."""
    return f"{bytes_ / 2**30:.2f} GiB" if bytes_ >= 2**30 else f"{bytes_ / 2**20:.1f} MiB"


def free_bytes(path: Path) -> int:
    """What may still be written at a path, which need not be there yet."""
    path = path.absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def check_room(path: Path, needed: float, free: float | None = None) -> None:
    """Raises a `UserError` where so many bytes do not fit beside what is there.

    Args:
        free: what is free there, where several ranks must come to the same answer.
    """
    if needed > (free := free_bytes(path) if free is None else free):
        raise UserError(
            f"{path} needs {size(needed)}, and {size(free)} are free there; what was saved before is whole: make room, "
            "then continue with --ckpt_path last"
        )


@contextmanager
def told_when_full(path: Path) -> Iterator[None]:
    """Around writing `path`: a disk that is full gives a `UserError`."""
    try:
        yield
    except Exception as error:
        if full_disk(error) is None:
            raise
        raise UserError(
            f"the disk was full while {path} was written ({size(free_bytes(path))} are free now); it is removed, and "
            "what was saved before is whole: make room, then continue with --ckpt_path last"
        ) from error
