"""What was expensive to get, on disk as soon as it is there: a killed command goes on where it was."""

import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any


class Kept(MutableMapping[str, Any]):
    """A mapping whose items survive the process: one line of a file each, appended when they are set.

    Several mappings share a file; a torn last line counts as not written.
    """

    def __init__(self, file: Path, name: str):
        """
        Args:
            file: where the lines are; made when something is set.
            name: whose lines they are: must change whenever the same key would get another value.
        """
        self.file, self.name = file, name
        self._items: dict[str, Any] = {}
        for line in file.read_bytes().split(b"\n") if file.is_file() else ():
            try:
                owner, key, value = json.loads(line)
            except (ValueError, TypeError):
                continue
            if owner == name:
                self._items[key] = value

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, values: dict[str, Any]) -> None:  # type: ignore[override]
        """Adds all items in one write."""
        self._items |= values
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab") as out:  # behind a line break, so that a torn line stays alone
            out.write("".join(f"\n{json.dumps([self.name, k, v])}" for k, v in values.items()).encode() + b"\n")

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __delitem__(self, key: str) -> None:
        raise TypeError("what is kept is not taken back; delete the file")

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
