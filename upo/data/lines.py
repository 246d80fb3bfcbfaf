"""Records of local files and of hub data sets, each with the place that it came from.

Lines are split at "\\n" alone: `str.splitlines` also splits at U+0085 and U+2028, which real data holds inside strings.
JSON is parsed here and not by `datasets`, which names neither file nor line of a malformed record and turns `true`
in a text column into a string.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from io import BufferedIOBase, TextIOWrapper
from pathlib import Path
from typing import Any

from upo.data.files import SUFFIXES, LocalFiles, local_files
from upo.data.row import Row as Row
from upo.data.row import Unusable as Unusable
from upo.errors import UserError

CELL = 2**31 - 1
"""Largest size of a CSV cell, in characters."""


def local_rows(path: Path, files: str | None = None, split: str = "train") -> Iterator[Row]:
    """Records of a file, or of the files of a folder in the order of their names.

    Args:
        path: a file ending in .jsonl, .json (a list of objects, or one object as the only record), .csv (with a line of
            column names), all of them also with .gz, .parquet or .arrow; a folder with such files; or a folder that
            `datasets.save_to_disk` wrote.
        files: which files of a folder, e.g. "*.test.jsonl.gz" or "**/train.parquet"; by default all that lie in it.
        split: which of them, where their names hold splits.

    Raises:
        UserError: no such file or split, unknown kind of file, not UTF-8, malformed JSON: with file and line.
    """
    yield from rows_of(local_files(path, files, split))


def rows_of(chosen: LocalFiles) -> Iterator[Row]:
    """Records of local files."""
    if chosen.saved is not None:
        yield from _saved_rows(chosen.saved)
    for file in chosen.files:
        yield from _file_rows(file)


def hub_rows(
    name: str, files: str | None, split: str, config: str | None = None, streaming: bool = False
) -> Iterator[Row]:
    """Records of a data set of the Hugging Face hub, downloaded and cached by `datasets`, or read as they come."""
    import datasets

    named: dict[str, Any] = {"name": config} if config else {}
    try:
        records = datasets.load_dataset(name, **named, data_files=files, split=split, streaming=streaming)
        for i, record in enumerate(records, start=1):
            yield Row(_without_nulls(record), f"{name}[{split}]:{i}")  # type: ignore[arg-type]
    except Exception as error:  # from no network to no such split: every library below raises its own kinds
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"`{name}` is no local path, and split `{split}` cannot be read from the hub: "
            f"{type(error).__name__}: {reason}\n"
            "If the hub is not reachable from here, give `local:` a file or folder with the same records."
        ) from error


def _without_nulls(record: Any) -> Any:
    """A record without nested nulls: Arrow gives every object of a column the fields of all others, as null."""
    if isinstance(record, dict):
        return {name: _bare(value) for name, value in record.items()}
    return record


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _bare(inner) for name, inner in value.items() if inner is not None}
    return [_bare(inner) for inner in value] if isinstance(value, list) else value


def _file_rows(file: Path) -> Iterator[Row]:
    kind = file.name.removesuffix(".gz").rpartition(".")[2]
    if not file.name.endswith(SUFFIXES):
        raise UserError(f"{file}: unknown kind of file; known: {', '.join(SUFFIXES)}")
    if kind in ("parquet", "arrow"):
        yield from _arrow_rows(file, kind)
        return
    readers = {"jsonl": _json_lines, "json": _json_file, "csv": _csv_rows}
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield from readers[kind](file, stream)
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


def _csv_rows(file: Path, stream: Any) -> Iterator[Row]:
    """All cells are texts: `Row` reads numbers, lists and objects from them. An empty cell is a missing value."""
    csv.field_size_limit(CELL)
    reader = csv.DictReader(TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
    try:
        for record in reader:
            where = f"{file}:{reader.line_num}"
            if None in record or None in record.values():
                raise UserError(f"{where}: this row has another number of cells than there are column names")
            yield Row({name: cell or None for name, cell in record.items()}, where, as_text=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num + 1}: malformed CSV: {error}") from error


def _arrow_rows(file: Path, kind: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(file).iter_batches() if kind == "parquet" else _arrow_batches(file)
        for i, record in enumerate((record for batch in batches for record in batch.to_pylist()), start=1):
            yield Row(_without_nulls(record), f"{file}: record {i}")
    except (OSError, OverflowError, ValueError, pyarrow.ArrowException) as error:
        name = "Parquet" if kind == "parquet" else "Arrow"
        raise UserError(f"{file}: not a readable {name} file: {error}") from error


def _arrow_batches(file: Path) -> Any:
    """Of a stream, as `datasets` writes it, or of a file with an index."""
    import pyarrow

    with file.open("rb") as stream:
        indexed = stream.read(6) == b"ARROW1"
    source = pyarrow.memory_map(str(file))
    if not indexed:
        return pyarrow.ipc.open_stream(source)
    reader = pyarrow.ipc.open_file(source)
    return (reader.get_batch(i) for i in range(reader.num_record_batches))


def _saved_rows(folder: Path) -> Iterator[Row]:
    import datasets

    try:
        records = datasets.load_from_disk(str(folder))
    except Exception as error:  # each format version fails in its own way
        raise UserError(f"{folder}: not a readable folder of datasets.save_to_disk: {error}") from error
    for i, record in enumerate(records, start=1):
        yield Row(_without_nulls(record), f"{folder}: record {i}")


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
