"""A data source: which function reads which records, and how often its examples are used."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from attrs import evolve
from tqdm import tqdm

from upo.data import sources
from upo.data.example import Example, Response, prompt_key
from upo.data.lines import hub_rows, local_rows
from upo.data.messages import dumped
from upo.data.report import DataReport, SourceReport
from upo.data.row import Columns, Row
from upo.errors import UserError, did_you_mean

LONGEST = 10_000_000
"""Characters of a prompt with its responses: no model reads as much, and tokenising it would take minutes."""
SourceFunction = Callable[..., Iterable[Example]]
"""`(rows, report, **options) -> examples`: rows in, what cannot be used counted in the report."""


@dataclass
class Source:
    """One data set.

    Args:
        name: how records become examples: a function of `upo.data.sources` (hh, shp, oasst, ultrafeedback, trl,
            sharegpt, ...), or the import path `package.module.function` of your own.
        path: where the records are: a local file or folder (.jsonl, .json, also .gz; .parquet), or a hub name.
        local: a local file or folder that is read instead of `path` wherever it exists.
        split: split of a hub data set; local files are chosen with `files`.
        files: which files of a folder or hub data set, e.g. "*/train.jsonl.gz"; by default all directly in the folder.
        weight: how often each example is used an epoch, above 0: 0.5 takes a fixed random half, 2 takes each twice.
        limit: at most this many examples, the first ones.
        label: name in reports and in metrics by source; by default `name`.
        options: keyword arguments of the source function, e.g. {min_score_ratio: 3} for shp.
    """

    name: str
    path: str | None = None
    local: str | None = None
    split: str = "train"
    files: str | None = None
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
        rows, origin = self._rows()
        columns = Columns()
        counts = SourceReport(origin=origin or "no file, made by code")
        # disable=None: no bar where the output is not a terminal
        bar = tqdm((row.seen_by(columns) for row in rows), desc=f"reading {label}", unit=" records", delay=1, leave=False, disable=None)
        made = function(iter(bar), counts, **self.options)
        checked = (check_numbers(example, label, number) for number, example in enumerate(made, 1))
        usable = (clean for example in checked if (clean := usable_part(example, counts)) is not None)
        examples = [
            evolve(example, source=f"{label}/{example.source}" if example.source else label)
            for example in islice(usable, self.limit)
        ]
        bar.close()
        counts.keep(len(examples))
        for column, number in columns.unread().items():
            counts.note(f"not read: `{column}`", number=number)
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

    def _rows(self) -> tuple[Iterator[Row], str]:
        """The records, and where they come from: nothing where neither `path` nor `local` is set."""
        for place in (self.local, self.path):
            if place and (path := Path(place).expanduser()).exists():
                return local_rows(path, self.files), str(path)
        if self.path and _hub_name(self.path):
            return hub_rows(self.path, self.files, self.split), f"hub: {self.path} [{self.split}]"
        if self.path or self.local:
            raise UserError(
                f"data source `{self.name}`: nothing at path={self.path}, local={self.local}\n"
                "Set `path` to a hub name (owner/name) or `local` to an existing file or folder."
            )
        return iter(()), ""


def check_numbers(example: Example, label: str, number: int) -> Example:
    """The example, whose numbers are finite and whose soft label is a probability.

    Raises:
        UserError: names the source, the example and the field; the source function made it.
    """
    soft = example.soft_label
    if soft is not None and not 0 <= soft <= 1:
        raise UserError(f"{label}: example {number} has soft_label={soft}; give a probability in [0, 1], or None")
    for i, r in enumerate(example.responses):
        named = {"rank": r.rank, "score": r.score, **r.attributes, **r.rewards}
        for name, value in named.items():
            if value is not None and not math.isfinite(value):
                raise UserError(
                    f"{label}: example {number}, response {i} has {name}={value}; give a finite number or None"
                )
    return example


def usable_part(example: Example, report: SourceReport) -> Example | None:
    """The example without what nothing can be learned from; None where nothing is left.

    A pair (two ranked responses) goes as a whole when a response is empty, both are equal, or their ranks or scores
    tie; responses that differ in white space alone are a pair, as code may be. In lists and labelled sets a response
    that is empty or repeats another, but for white space around it, is left out; ties stay. Prompts alone stay so.
    """
    if reason := _defect(example):
        report.drop(reason, example.where)
        return None
    responses = example.responses
    if not responses:  # prompts alone
        return example
    if len(responses) == 2 and all(r.rank is not None for r in responses):
        reason = _pair_defect(*sorted(responses, key=lambda r: r.rank))  # type: ignore[arg-type, return-value]
        if reason:
            report.drop(reason, example.where)
        return None if reason else example
    left: dict[str, Response] = {}
    for response in filter(_says, responses):
        if left.setdefault(_said(response).strip(), response) is not response:
            report.count("repeated response left out", example.where)
    empty = sum(not _says(r) for r in responses)
    if not left:
        report.drop("empty response", example.where)
        return None
    if empty:
        report.count("empty response left out", example.where, number=empty)
    return example.with_responses(tuple(left.values()))


def _defect(example: Example) -> str | None:
    """Why an example cannot be used, whatever its responses are."""
    prompt = example.prompt
    if not (prompt if isinstance(prompt, str) else "".join(m["content"] or "" for m in prompt)).strip():
        return "empty prompt"
    texts = [prompt_key(prompt), example.rationale or "", *map(_said, example.responses)]
    if sum(map(len, texts)) > LONGEST:
        return f"text of more than {LONGEST:,} characters"
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:  # one half of a surrogate pair
        return "text that is not valid Unicode"
    return None


def _pair_defect(chosen: Response, rejected: Response) -> str | None:
    if not _says(chosen):
        return "empty chosen"
    if not _says(rejected):
        return "empty rejected"
    if _said(chosen) == _said(rejected):
        return "identical pair"
    if chosen.rank == rejected.rank or (chosen.score is not None and chosen.score == rejected.score):
        return "tie"
    return None


def _says(response: Response) -> bool:
    """Whether there is anything to learn: a text, or a call of a tool."""
    return bool(response.text.strip() or response.message.get("tool_calls"))


def _said(response: Response) -> str:
    """All of a response, for comparison."""
    return response.text + (f"\0{dumped(response.message)}" if response.message else "")


def _hub_name(path: str) -> bool:
    """Whether it looks like `owner/name` or `name` rather than like a file that is not there."""
    return (
        path.count("/") <= 1 and path[0] not in "./~" and not path.endswith(("/", ".json", ".jsonl", ".gz", ".parquet"))
    )


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
