"""A data source: which function reads which records, and how often its examples are used."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from attrs import evolve
from tqdm import tqdm

from upo.data import sources
from upo.data.example import Example
from upo.data.files import SUFFIXES, local_files
from upo.data.lines import hub_rows, rows_of
from upo.data.report import DataReport, SourceReport
from upo.data.row import Columns, Row
from upo.data.usable import check_numbers
from upo.data.usable import usable_part as usable_part
from upo.errors import UserError, did_you_mean

SourceFunction = Callable[..., Iterable[Example]]
"""`(rows, report, **options) -> examples`: rows in, what cannot be used counted in the report."""


@dataclass
class Source:
    """One data set.

    Args:
        name: how records become examples: a function of `upo.data.sources` (hh, shp, oasst, ultrafeedback, trl,
            sharegpt, ...), or the import path `package.module.function` of your own.
        path: where the records are: a local file or folder (.jsonl, .json, .csv, also .gz; .parquet, .arrow; what
            `datasets.save_to_disk` wrote), or a hub name.
        local: a local file or folder that is read instead of `path` wherever it exists.
        split: part of a hub data set or of a local folder whose file names hold splits (train, validation, test).
        config: configuration of a hub data set that has several (`name` in its documentation).
        files: which files of a folder or hub data set, e.g. "*/train.jsonl.gz"; by default all directly in the folder.
        streaming: whether the records of a hub data set are read as they come, without a copy on the disk; with
            `limit`, reading ends there.
        weight: how often each example is used an epoch, above 0: 0.5 takes a fixed random half, 2 takes each twice.
        limit: at most this many examples, the first ones.
        label: name in reports and in metrics by source; by default `name`.
        options: keyword arguments of the source function, e.g. {min_score_ratio: 3} for shp.
    """

    name: str
    path: str | None = None
    local: str | None = None
    split: str = "train"
    config: str | None = None
    files: str | None = None
    streaming: bool = False
    weight: float = 1.0
    limit: int | None = None
    label: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # not PositiveFloat and PositiveInt: a plain 0.5 is no instance of them
        if self.weight <= 0 or (self.limit is not None and self.limit < 1):
            raise UserError(f"data source `{self.name}`: `weight` must be above 0, `limit` at least 1 (or null)")

    def examples(self, report: DataReport) -> list[Example]:
        """All usable examples, in the order of the records; the others are counted in `report`.

        Raises:
            UserError: unknown source or option, no data at `path` and `local`, a malformed file, nothing usable.
        """
        function = self._function()
        label = self.label or self.name.rpartition(".")[2]
        rows, origin, note = self._rows()
        columns = Columns()
        counts = SourceReport(origin=origin or "no file, made by code")
        if note:
            counts.note(note)
        # disable=None: no bar where the output is not a terminal
        bar = tqdm(
            (row.seen_by(columns) for row in rows),
            desc=f"reading {label}",
            unit=" records",
            delay=1,
            leave=False,
            disable=None,
        )
        made = function(iter(bar), counts, **self.options)
        checked = (check_numbers(example, label, number) for number, example in enumerate(made, 1))
        usable = (clean for example in checked if (clean := usable_part(example, counts)) is not None)
        examples = [
            evolve(example, source=f"{label}/{example.source}" if example.source else label)
            for example in islice(usable, self.limit)
        ]
        bar.close()
        counts.keep(len(examples))
        if unread := columns.unread():
            number = max(columns.present[name.partition(".")[0]] for name in unread)
            counts.note(f"not read: {', '.join(f'`{name}`' for name in unread)}", number=number)
        _note_labels(examples, counts)
        report.add(label, counts)
        if not examples:
            where = origin or "no file (neither `path` nor `local` is set)"
            raise UserError(f"{label}: no usable example in {where}{_main_reason(counts, columns)}")
        return examples

    def _function(self) -> SourceFunction:
        if "." not in self.name:
            if self.name not in sources.__all__:
                raise UserError(f"unknown data source `{self.name}`; {did_you_mean(self.name, sources.__all__)}")
            function = getattr(sources, self.name)
        else:
            module, _, name = self.name.rpartition(".")
            try:
                function = getattr(import_module(module), name)
            except (ImportError, AttributeError) as error:
                raise UserError(f"data source `{self.name}` cannot be imported: {error}") from error
        parameters = list(inspect.signature(function).parameters.values())
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            known = [p.name for p in parameters[2:]]  # behind rows and report
            for option in self.options:
                if option not in known:
                    hint = did_you_mean(option, known) if known else "It has none."
                    raise UserError(f"data source `{self.name}` has no option `{option}`; {hint}")
        return function

    def _rows(self) -> tuple[Iterator[Row], str, str]:
        """The records, where they come from, and a note: nothing where neither `path` nor `local` is set."""
        for place in (self.local, self.path):
            if place and (path := Path(place).expanduser()).exists():
                stands_in = place is self.local and self.path is not None
                if self.config and not stands_in:
                    path = _configuration(path, self.config)
                chosen = local_files(path, self.files, self.split, stands_in)
                return rows_of(chosen), str(path), chosen.note
        if self.path and _hub_name(self.path):
            name = f"{self.path}, {self.config}" if self.config else self.path
            rows = hub_rows(self.path, self.files, self.split, self.config, self.streaming)
            return rows, f"hub: {name} [{self.split}]", ""
        if self.path or self.local:
            raise UserError(
                f"data source `{self.name}`: nothing at path={self.path}, local={self.local}\n"
                "Set `path` to a hub name (owner/name) or `local` to an existing file or folder."
            )
        return iter(()), "", ""


def _configuration(path: Path, config: str) -> Path:
    """The folder of a configuration, as hub data sets keep them."""
    if not (path / config).is_dir():
        raise UserError(f"{path} has no folder `{config}`: leave `config` out, or name a hub data set by `path`")
    return path / config


def _hub_name(path: str) -> bool:
    """Whether it looks like `owner/name` or `name` rather than like a file that is not there."""
    return path.count("/") <= 1 and path[0] not in "./~" and not path.endswith(("/", ".gz", *SUFFIXES))


def _note_labels(examples: list[Example], counts: SourceReport) -> None:
    """How many responses are good and bad: with one kind alone there is nothing to tell apart."""
    labels = [r.desirable for e in examples for r in e.responses if r.desirable is not None]
    if labels:
        good, bad = sum(labels), len(labels) - sum(labels)
        counts.note(f"labels: {good:,} desirable, {bad:,} undesirable", number=len(labels))
        if not good or not bad:
            counts.note(f"all labels are {'desirable' if good else 'undesirable'}", number=len(labels))


def _main_reason(report: SourceReport, columns: Columns) -> str:
    reasons = report.dropped + report.altered
    if not reasons:
        return ": no record at all"
    reason, number = reasons.most_common(1)[0]
    place = f", first at {report.places[reason]}" if reason in report.places else ""
    known = ", ".join(f"`{name}`" for name in columns.present if "." not in name)[:300]
    listed = f" The columns are: {known}." if known else ""
    return f": {reason} ({number} times{place}); does `name` fit the file?{listed}"
