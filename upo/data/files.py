"""Which local files hold the records of a split: a file, a folder whose file names say it, or what `datasets` saved."""

import re
from pathlib import Path
from typing import Any

from attrs import frozen

from upo.errors import UserError

SUFFIXES = (
    ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".arrow", ".csv", ".csv.gz",
)  # fmt: skip
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
"""Splits, and the words of file names that stand for them."""
OWN = ("dataset_info.json", "dataset_dict.json", "state.json", "dataset_infos.json")
"""Files that `datasets` writes beside the records."""


@frozen
class LocalFiles:
    """The files of one split, in the order of their names, or a folder of `datasets.save_to_disk`."""

    files: tuple[Path, ...]
    saved: Path | None = None
    note: str = ""
    """What the report should say of the choice."""


def local_files(path: Path, pattern: str | None = None, wanted: str = "train", stands_in: bool = False) -> LocalFiles:
    """What to read.

    "train", which is what nobody has to say, is all of a file, and all of a folder whose names hold no splits.

    Args:
        path: a file or a folder.
        pattern: which files of a folder; null: all that lie in it or, where none does, below it.
        wanted: the split.
        stands_in: the path stands in for a hub data set: a file is taken for the split, whatever its name.

    Raises:
        UserError: no such file, or no such split.
    """
    split = None if wanted == "train" else wanted
    if not path.is_dir():
        if split and not stands_in and split not in _words(path.name) and _split_of(split) not in _splits(path.name):
            raise UserError(
                f"{path} cannot give `split: {split}`: one file is one part, and its name does not say so; "
                "leave `split` out, or name the file of that split"
            )
        own = sorted(_splits(path.name))
        note = (
            f"read from a file of the split `{own[0]}`" if len(own) == 1 and own[0] != (_split_of(wanted) or "") else ""
        )
        return LocalFiles((path,), note=note)
    if (path / "dataset_dict.json").is_file():
        parts = {p.name: p for p in sorted(path.iterdir()) if p.is_dir()}
        if wanted not in parts:
            raise _no_split(path, wanted, list(parts))
        return LocalFiles((), saved=parts[wanted])
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        if split and (own := _saved_split(path)) != split and not stands_in:
            raise _no_split(path, split, [own] if own else [])
        return LocalFiles((), saved=path)
    return _in_folder(path, pattern, split, stands_in)


def _in_folder(path: Path, pattern: str | None, split: str | None, stands_in: bool) -> LocalFiles:
    found = [f for glob in ([pattern] if pattern else ["*", "**/*"]) if (f := _data_files(path, glob))]
    if not found:
        raise UserError(f"{path}: no {', '.join(SUFFIXES)} file matches `files: {pattern or '*'}`")
    names = {file: str(file.relative_to(path)) for file in found[0]}
    folders = sorted({name.partition("/")[0] for name in names.values() if "/" in name})
    if not pattern and len([folder for folder in folders if not _splits(folder)]) > 1:
        raise UserError(
            f"{path} holds several folders of records: {', '.join(folders)}; choose one by `config` or `files`"
        )
    splits = {file: _splits(name) for file, name in names.items()}
    known = sorted({split for own in splits.values() for split in own})
    if pattern and (split is None or stands_in):  # the files were chosen by hand
        note = f"files of several splits are read, as `files` says: {', '.join(known)}" if len(known) > 1 else ""
        return LocalFiles(tuple(names), note=note)
    wanted = split or "train"
    chosen = [f for f in names if split and split in _words(names[f])]
    if not chosen and (wanted in SPLITS or stands_in):
        chosen = [f for f in names if _split_of(wanted) in splits[f]]
    if not known and not chosen:
        if split and not stands_in:
            raise _no_split(path, split, [])
        return LocalFiles(tuple(names))
    alone = len(known) == 1 and all(splits.values())
    if not chosen and alone and split is None:
        note = f"read from files of the split `{known[0]}`: no file is named {wanted}"
        return LocalFiles(tuple(names), note=note)
    if not chosen:
        raise _no_split(path, wanted, known)
    mixed = [f for f in chosen if len(splits[f]) > 1]
    if mixed and not alone:
        raise UserError(f"{mixed[0]}: its name says {' and '.join(sorted(splits[mixed[0]]))}; choose files by `files`")
    left_out = len(names) - len(chosen)
    note = f"split `{wanted}`: {len(chosen)} of {len(names)} files are read" if left_out else ""
    return LocalFiles(tuple(chosen), note=note)


def _data_files(path: Path, pattern: str) -> list[Path]:
    return sorted(f for f in path.glob(pattern) if f.is_file() and f.name.endswith(SUFFIXES) and f.name not in OWN)


def _words(name: str) -> set[str]:
    """A name's words, single ones and those that _ joins: "a/train_prefs-00.parquet" has train, prefs, train_prefs."""
    joined = re.findall(r"[a-z0-9_]+", name.lower())
    return {*joined, *(word for words in joined for word in words.split("_"))}


def _splits(name: str) -> set[str]:
    return {split for split, words in SPLITS.items() if _words(name) & set(words)}


def _split_of(split: str) -> str | None:
    """The usual split that a name such as "dev" or "train_prefs" stands for."""
    return next(iter(_splits(split)), None)


def _saved_split(folder: Path) -> str | None:
    import json

    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state.get("_split")


def _no_split(path: Path, split: str, known: list[str]) -> UserError:
    there = f"there are: {', '.join(known)}" if known else "nothing in it is named by a split"
    return UserError(f"{path} has no split `{split}`; {there}; set `split` to one of them, or choose files by `files`")
