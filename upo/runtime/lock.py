"""One process at a time: locks of the system on files, which end with the process that holds them, however it ends."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from upo.errors import UserError


class Lock:
    """A file that one process has to itself. It is made where it is missing and never removed: a new one of the same
    name would be another lock."""

    _open: "set[Lock]" = set()
    """Those of this process; a process forked from it (a loader's worker) may live on, and must not keep them."""

    def __init__(self, file: Path):
        """
        Raises:
            UserError: nothing can be written there.
        """
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{file.parent} cannot be written ({error.strerror}); name another folder") from None
        self.file = file
        Lock._open.add(self)

    def take(self) -> bool:
        """Whether it is ours now; false where another process has it."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        return True

    @property
    def holder(self) -> str:
        """Who has taken it last, e.g. `process 4711 on node3`."""
        return os.pread(self._handle, 200, 0).decode(errors="replace") or "another process"

    def close(self) -> None:
        """Gives it back, if it was ours."""
        Lock._open.discard(self)
        os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _forget() -> None:
    for lock in tuple(Lock._open):
        lock.close()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def alone(file: Path, what: str) -> Iterator[None]:
    """Around work that only one process at a time may do.

    Args:
        what: what the other one is, e.g. `another upo.ablate works in runs/study`.

    Raises:
        UserError: another process is at it.
    """
    with Lock(file) as lock:
        if not lock.take():
            raise UserError(f"{what} ({lock.holder}); wait until it ends, or stop it first")
        yield
