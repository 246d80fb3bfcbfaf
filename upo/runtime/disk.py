"""Room on disks: asked for before something large is written, and said in a sentence where it ends on the way."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upo.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space, over quota, over the largest file that is allowed."""


def size(bytes_: float) -> str:
    """In GiB, below one in MiB."""
    return f"{bytes_ / 2**30:.2f} GiB" if bytes_ >= 2**30 else f"{bytes_ / 2**20:.1f} MiB"


def free_bytes(path: Path) -> int:
    """What may still be written at a path, which need not be there yet."""
    path = path.absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def is_full(error: BaseException) -> bool:
    """Whether an error, or what led to it, says that nothing more can be written."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.errno in FULL:
            return True
        inner = inner.__cause__ or inner.__context__
    return False


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
        if not is_full(error):
            raise
        raise UserError(
            f"the disk was full while {path} was written ({size(free_bytes(path))} are free now); nothing of it is left, "
            "and what was saved before is whole: make room, then continue with --ckpt_path last"
        ) from error
