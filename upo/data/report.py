"""What became of the data: counts by source and reason, from the file to the batch."""

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from attrs import define, field

if TYPE_CHECKING:
    from rich.table import Table


@define
class SourceReport:
    """The counts of one source; what a source function is handed."""

    origin: str = ""
    """Where its records were read from."""
    kept: Counter[str] = field(factory=Counter)
    """What was kept, by kind: "examples" as the source gave them, later also pairs, labels or lists."""
    dropped: Counter[str] = field(factory=Counter)
    """What was lost as a whole, by reason."""
    altered: Counter[str] = field(factory=Counter)
    """What was kept in another form (a response left out of a list, a truncation), by reason."""
    notes: Counter[str] = field(factory=Counter)
    """What is worth knowing of records that were kept, such as a column that nobody read, with their number."""
    places: dict[str, str] = field(factory=dict)
    """Where a reason was met first, file and line, where that is known."""

    def keep(self, number: int = 1, kind: str = "examples") -> None:
        self.kept[kind] += number

    def drop(self, reason: str, where: str = "", number: int = 1) -> None:
        self.dropped[reason] += number
        if where:
            self.places.setdefault(reason, where)

    def count(self, reason: str, where: str = "", number: int = 1) -> None:
        self.altered[reason] += number
        if where:
            self.places.setdefault(reason, where)

    def note(self, what: str, where: str = "", number: int = 1) -> None:
        self.notes[what] += number
        if where:
            self.places.setdefault(what, where)


@define
class DataReport:
    """The reports of all sources; adds up with `+`, prints as a table, writes as JSON."""

    sources: dict[str, SourceReport] = field(factory=lambda: defaultdict(SourceReport))

    def of(self, source: str) -> SourceReport:
        """The report of one source, by the name that its examples carry."""
        return self.sources[source]

    def keep(self, source: str, number: int = 1, kind: str = "examples") -> None:
        """Counts what remains, e.g. `keep("hh", 5000)` or `keep("hh", 4870, "pairs")`."""
        self.of(source).keep(number, kind)

    def drop(self, source: str, reason: str, where: str = "", number: int = 1) -> None:
        """Counts what is lost as a whole, e.g. `drop("hh", "too long")`."""
        self.of(source).drop(reason, where, number)

    def count(self, source: str, reason: str, where: str = "", number: int = 1) -> None:
        """Counts what is kept in another form, e.g. `count("hh", "prompt cut on the left")`."""
        self.of(source).count(reason, where, number)

    def note(self, source: str, what: str, where: str = "", number: int = 1) -> None:
        """Says what is worth knowing of records that are kept, e.g. `note("hh", "not read: `category`")`."""
        self.of(source).note(what, where, number)

    def add(self, source: str, counts: SourceReport) -> None:
        """Adds the counts of one source to what is known of it."""
        whole = self.of(source)
        if counts.origin and counts.origin not in whole.origin:
            whole.origin = f"{whole.origin}, {counts.origin}" if whole.origin else counts.origin
        whole.kept.update(counts.kept)
        whole.dropped.update(counts.dropped)
        whole.altered.update(counts.altered)
        whole.notes.update(counts.notes)
        whole.places = {**counts.places, **whole.places}

    def __add__(self, other: "DataReport") -> "DataReport":
        total = DataReport()
        for report in (self, other):
            for name, counts in report.sources.items():
                total.add(name, counts)
        return total

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain types, one entry a source, with reasons in falling order of their counts."""
        return {
            name: {
                "origin": part.origin,
                "kept": dict(part.kept),
                "dropped": dict(part.dropped.most_common()),
                "altered": dict(part.altered.most_common()),
                "notes": dict(part.notes),
                "places": dict(part.places),
            }
            for name, part in self.sources.items()
        }

    def table(self) -> "Table":
        """For `rich.print`: one block a source, with what was kept, dropped and altered, why, and where first."""
        from rich.table import Table
        from rich.text import Text

        table = Table("source", "", "number", "what", "first at", title="Data")
        for name, part in self.sources.items():
            table.add_section()
            table.add_row(Text(name), "read from", "", Text(part.origin or "-"))
            for label, counts in (
                ("kept", part.kept),
                ("dropped", part.dropped),
                ("altered", part.altered),
                ("note", part.notes),
            ):
                for reason, number in counts.most_common():
                    # Text, not str: reasons and paths may hold square brackets, which rich takes for markup
                    table.add_row("", label, f"{number:,}", Text(reason), Text(_short(part, reason)))
        return table


def _short(part: SourceReport, reason: str) -> str:
    """The file's name and the line: the folder stands above, and paths make a table unreadable."""
    return part.places.get(reason, "").rpartition("/")[2]
