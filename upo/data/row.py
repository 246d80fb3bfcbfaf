"""One record of a data set, its typed fields, and which of them a source has asked for."""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from attrs import define, evolve, field, frozen

EMPTY = (None, "", "[]", "{}", [], {}, ())
"""Values that say nothing."""


class Unusable(Exception):
    """A record cannot become an example; the message is the reason under which it is dropped and counted."""


@define
class Columns:
    """The columns of one source's records, nested ones with dots ("messages.role"), and those that it asks for."""

    present: Counter[str] = field(factory=Counter)
    """How many values each column has that are not empty."""
    read: set[str] = field(factory=set)

    def unread(self) -> list[str]:
        """Columns that no record was asked for."""
        return [name for name in self.present if name not in self.read]


class Fields(dict):
    """A record that remembers what was asked of it; otherwise a dict like any other.

    Not `dict[str, Any]`: a type checker at run time would look into it, which counts as asking.
    """

    def __init__(self, data: Mapping[str, Any], columns: Columns, path: str = ""):
        super().__init__(data)
        self.columns, self.path, self.asked = columns, path, set[str]()
        columns.present.update(f"{path}{name}" for name, value in super().items() if value not in EMPTY)

    def _note(self, *names: Any) -> None:
        self.asked.update(names)
        self.columns.read.update(f"{self.path}{name}" for name in names)

    def get(self, name: Any, default: Any = None) -> Any:
        self._note(name)
        return super().get(name, default)

    def __getitem__(self, name: Any) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:
        self._note(*super().keys())
        return super().__iter__()

    def keys(self) -> Any:
        self._note(*super().keys())
        return super().keys()

    def items(self) -> Any:
        self._note(*super().keys())
        return super().items()

    def values(self) -> Any:
        self._note(*super().keys())
        return super().values()

    def unread(self) -> dict[str, Any]:
        """What nobody has asked for, and is not empty."""
        return {name: value for name, value in super().items() if name not in self.asked and value not in EMPTY}


def _fields(data: Any) -> Fields:
    return data if isinstance(data, Fields) else Fields(data, Columns())


@frozen
class Row:
    """One record, and where it stands, for errors.

    The typed readers below raise `Unusable` naming the field: no value is converted, `true` is not a text.
    """

    data: Fields = field(converter=_fields)
    where: str
    """For example "data/hh/helpful.jsonl.gz:17"."""
    path: str = ""
    """Of a nested record: its place within the outer one, with a dot at the end ("metadata.")."""
    as_text: bool = False
    """Whether all values are texts, as in CSV: then numbers, lists and objects are read from them."""

    def __contains__(self, field: str) -> bool:
        """Whether it has such a field, and that is not null; this alone does not count as reading it."""
        return dict.get(self.data, field) is not None

    def has(self, field: str) -> bool:
        """Whether it has such a field, be it null."""
        return dict.__contains__(self.data, field)

    def seen_by(self, columns: Columns) -> "Row":
        """The same record, which tells `columns` what is asked of it."""
        return evolve(self, data=Fields(dict(self.data), columns, self.path))

    def _value(self, field: str, kind: str, kinds: type | tuple[type, ...]) -> Any:
        value = self.data.get(field)
        if self.as_text and kinds is not str and isinstance(value, str):
            value = parsed(value.lower() if kinds is bool else value)
        if value is None:
            raise Unusable(f"missing `{self.path}{field}`")
        # bool is a subclass of int
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise Unusable(f"`{self.path}{field}` is {type(value).__name__}, not {kind}")
        return value

    def text(self, field: str) -> str:
        """A string, possibly empty."""
        value = self._value(field, "text", str)
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can hold one half of a surrogate pair, tokenizers then fail
            raise Unusable(f"`{self.path}{field}` is not valid Unicode") from None
        return value

    def number(self, field: str) -> float:
        """A finite number."""
        whole = self._value(field, "number", (int, float))
        try:
            value = float(whole)
        except OverflowError:
            raise Unusable(f"`{self.path}{field}` is too large a number") from None
        if not math.isfinite(value):
            raise Unusable(f"`{self.path}{field}` is {value}")
        return value

    def flag(self, field: str) -> bool:
        """True or False; 0 and 1 are not taken for them."""
        return self._value(field, "true or false", bool)

    def label(self, field: str) -> bool:
        """Thumbs up or down: true or false, also as 1 or 0, also as text."""
        if (value := self.data.get(field)) is None:
            raise Unusable(f"missing `{self.path}{field}`")
        named = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
        word = str(value).strip().lower() if isinstance(value, bool | float | str) or value in (0, 1) else ""
        if word not in named:
            raise Unusable(f"`{self.path}{field}` is neither true (1) nor false (0)")
        return named[word]

    def items(self, field: str) -> list[Any]:
        return self._value(field, "list", list)

    def inner(self, field: str) -> "Row":
        """A nested record."""
        return self._nested(field, self._value(field, "object", dict))

    def inners(self, field: str) -> list["Row"]:
        """A list of nested records."""
        return self.nested(field, self.items(field))

    def nested(self, field: str, items: list[Any]) -> list["Row"]:
        """Nested records that the list, a value of this field, holds."""
        if not all(isinstance(item, dict) for item in items):
            raise Unusable(f"`{self.path}{field}` holds something that is not an object")
        return [self._nested(field, item) for item in items]

    def _nested(self, field: str, value: Mapping[str, Any]) -> "Row":
        path = self.path if f".{self.path}".endswith(f".{field}.") else f"{self.path}{field}."  # a tree has one name
        return Row(Fields(value, self.data.columns, path), self.where, path)

    def refuse_unread(self, names: Collection[str]) -> None:
        """Raises `Unusable` where one of these fields says something and was not asked for."""
        if unread := [name for name in self.data.unread() if name in names]:
            raise Unusable(f"`{self.path}{unread[0]}` is not read by this source: leave it out, or write a source")


def parsed(text: str) -> Any:
    """What JSON text says; None for any other text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
