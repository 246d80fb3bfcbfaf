"""Errors that a user can mend: printed in one to three lines, exit code 2 (1 where a run fails), no traceback."""

import difflib
import errno
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake in a config, a command or a data file; the message says what to change."""

    code = 2
    """Exit code of a command that it ends."""


class RunFailed(UserError):
    """Training that cannot go on, e.g. a loss that is no number any more; the message says what to try."""

    code = 1


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped word most likely meant; of other case alone before others."""
    known = sorted(known)
    same = (name for name in known if name.lower() == word.lower())
    return next(same, None) or next(iter(difflib.get_close_matches(word, known, n=1)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped `word`: the nearest known name, then all names, as one sentence."""
    known = sorted(known)
    near = nearest(word, known)
    hint = f"did you mean `{near}`? " if near else ""
    return f"{hint}Known: {', '.join(known)}."


@contextmanager
def short_errors(stopped: str | None = None) -> Iterator[None]:
    """Around a command: a `UserError`, wrapped or not, a full disk, a file or folder that cannot be read or made, or
    Ctrl-C end it with a sentence and an exit code.

    Args:
        stopped: what to add after Ctrl-C, e.g. what is kept.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("stopped by Ctrl-C" + (f"; {stopped}" if stopped else ""), file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if (told := next((x for x in causes(error) if isinstance(x, UserError)), None)) is None:
            if (full := full_disk(error)) is not None:
                text = f"no room is left to write {full.filename or 'a file'} ({full.strerror}); make room first"
            elif (place := unusable(error)) is not None:
                text = f"{place.filename} cannot be read or written ({place.strerror}); name another file or folder"
            else:
                raise
            told = UserError(text)
        print(f"error: {told}", file=sys.stderr)
        sys.exit(told.code)


def full_disk(error: BaseException) -> OSError | None:
    """That error, or what led to it, which says that nothing more can be written."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, over quota, over the largest file that is allowed
    return next((x for x in causes(error) if isinstance(x, OSError) and x.errno in full), None)


def unusable(error: BaseException) -> OSError | None:
    """That error, if it says that a path cannot be used: not there, no folder, read-only, too long."""
    paths = FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError | PermissionError
    further = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
    if (
        isinstance(error, OSError)
        and error.filename is not None
        and (isinstance(error, paths) or error.errno in further)
    ):
        return error
    return None if error.__cause__ is None else unusable(error.__cause__)


def root_cause(error: BaseException) -> str:
    """What went wrong first, its type and where it was raised."""
    *_, first = causes(error)
    frame = traceback.extract_tb(first.__traceback__)[-1]
    return f"{first} ({type(first).__name__} in {frame.filename}, line {frame.lineno})"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what led to it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def refuse_code(error: BaseException, name: str) -> None:
    """Raises a `UserError` where transformers wants to run code that lies beside a model: it never is."""
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        raise UserError(
            f"`{name}` brings code of its own, which is not run here; take a model of an architecture that "
            "transformers has, or convert it"
        ) from None


BROKEN = "SafetensorError"
"""What safetensors raises at a broken file, an Exception alone; tokenizers raise a plain `Exception`."""


class hub_errors:
    """Turns transformers' long reports about a missing or broken folder into one sentence."""

    def __init__(self, name: str, what: str):
        self.name, self.what = name, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        if isinstance(error, ImportError):
            raise UserError(f"the {self.what} `{self.name}` cannot be read here: {str(error).strip()[:200]}") from None
        if isinstance(error, OSError | ValueError) or kind is Exception or getattr(kind, "__name__", "") == BROKEN:
            refuse_code(error, self.name)
            if (Path(self.name) / "adapter_config.json").is_file():
                raise UserError(
                    f"`{self.name}` is an adapter; set policy.path to the model below it, policy.adapter.path to it"
                ) from None
            if self.name.startswith(("/", ".", "~")) and not Path(self.name).expanduser().exists():
                raise UserError(f"no {self.what} at `{self.name}`: no such folder") from None
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(
                f"no {self.what} at `{self.name}`: neither a readable local folder nor a reachable hub name ({reason})"
            ) from None
