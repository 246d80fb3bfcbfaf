"""Records of local files and of hub data sets, each with the place that it came from.

Lines are split at "\\n" alone: `str.splitlines` also splits at U+0085 and U+2028, which real data holds inside strings.
JSON is parsed here and not by `datasets`, which names neither file nor line of a malformed record and turns `true`
in a text column into a string.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from upo.data.row import Row as Row
from upo.data.row import Unusable as Unusable
from upo.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


def local_rows(path: Path, files: str | None = None) -> Iterator[Row]:
    """Records of a file, or of all files of a folder in the order of their names.

    Args:
        path: a file ending in .jsonl, .json (a list of objects, or one object as the only record), either also
            with .gz, or .parquet; or a folder with such files.
        files: which files of a folder, e.g. "*.test.jsonl.gz" or "**/train.parquet"; by default all that lie in it.

    Raises:
        UserError: no such file, unknown kind of file, not UTF-8, malformed JSON: with file and line.
    """
    for file in _files(path, files):
        yield from _file_rows(file)


def hub_rows(name: str, files: str | None, split: str) -> Iterator[Row]:
    """Records of a data set of the Hugging Face hub, downloaded and cached by `datasets`."""
    import datasets

    try:
        records = datasets.load_dataset(name, data_files=files, split=split)
    except Exception as error:  # from no network to no such split: every library below raises its own kinds
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"`{name}` is no local path, and split `{split}` cannot be read from the hub: "
            f"{type(error).__name__}: {reason}\n"
            "If the hub is not reachable from here, give `local:` a file or folder with the same records."
        ) from error
    for i, record in enumerate(records):
        yield Row(record, f"{name}[{split}]:{i + 1}")  # type: ignore[arg-type]


def _files(path: Path, pattern: str | None) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(f for f in path.glob(pattern or "*") if f.is_file() and f.name.endswith(SUFFIXES))
    if not files:
        raise UserError(f"{path}: no {', '.join(SUFFIXES)} file matches `files: {pattern or '*'}`")
    return files


def _file_rows(file: Path) -> Iterator[Row]:
    kind = file.name.removesuffix(".gz").rpartition(".")[2]
    if not file.name.endswith(SUFFIXES):
        raise UserError(f"{file}: unknown kind of file; known: {', '.join(SUFFIXES)}")
    if kind == "parquet":
        yield from _parquet_rows(file)
        return
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield from (_json_lines if kind == "jsonl" else _json_file)(file, stream)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


def _json_lines(file: Path, stream: BufferedIOBase) -> Iterator[Row]:
    for i, line in enumerate(stream, start=1):  # a binary stream splits at b"\n" alone
        if line.strip():
            where = f"{file}:{i}"
            yield Row(_object(_parse(line.rstrip(b"\r\n"), where), where), where)


def _json_file(file: Path, stream: BufferedIOBase) -> Iterator[Row]:
    content = _parse(stream.read(), str(file))
    for i, record in enumerate(content if isinstance(content, list) else [content], start=1):
        where = f"{file}: record {i}"
        yield Row(_object(record, where), where)


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(file).iter_batches()
        records = (record for batch in batches for record in batch.to_pylist())
        for i, record in enumerate(records, start=1):
            yield Row(record, f"{file}: record {i}")
    except (OSError, OverflowError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{file}: not a readable Parquet file: {error}") from error


def _parse(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    except RecursionError:
        raise UserError(f"{where}: JSON nested too deeply to be read; leave this record out") from None
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        raise UserError(f"{where}: malformed JSON: {error.msg} at character {error.colno}{line}") from error
    except ValueError as error:  # a number of too many digits
        reason = str(error).partition(";")[0]
        raise UserError(f"{where}: malformed JSON: {reason}; leave this record out") from error


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record must be a JSON object, not a {type(record).__name__}")
    return record
