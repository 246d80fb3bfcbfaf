"""Data flow forward: a feed gives rounds, a round holds units with named columns, and nothing changes one in place."""

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from attrs import evolve, field, frozen
from jaxtyping import Bool
from torch import Tensor

from upo.data.units import Group, Unit
from upo.data.views import View


@frozen(eq=False, slots=False)
class Split:
    """Units of one side of a round, and columns over all rows: unit by unit, group by group, response by response.

    Example: two pairs have four rows; columns might be {"preferred": [True, False, True, False],
    "reference_logps": [-41.2, -38.0, -9.5, -12.1]}.
    """

    units: tuple[Unit, ...]
    columns: Mapping[str, Tensor] = field(factory=dict)
    """By name [rows]; where a row is not an own one, a column of the view holds 0, False or NaN."""

    @classmethod
    def of(cls, units: Sequence[Unit], view: View) -> "Split":
        """Units with the columns that the view reads off their examples, and those that they bring along."""
        split = cls(tuple(units))
        every = [{**view.columns(unit.example), **unit.columns} for unit in split.units]
        own = split.own.nonzero()[:, 0]
        for name in every[0] if every else ():
            values = torch.tensor([x for columns in every for x in columns[name]])
            whole = values.new_full((split.rows,), float("nan") if values.is_floating_point() else 0)
            split = split.with_column(name, whole.index_copy(0, own, values))
        return split

    def __len__(self) -> int:
        return len(self.units)

    @cached_property
    def first(self) -> list[int]:
        """The first row of each unit, and the number of all rows behind them."""
        return list(accumulate((sum(len(g.responses) for g in unit.groups) for unit in self.units), initial=0))

    @property
    def rows(self) -> int:
        return self.first[-1]

    @cached_property
    def own(self) -> Bool[Tensor, "rows"]:
        """Which rows are responses of own groups."""
        owned = [g.role == "own" for unit in self.units for g in unit.groups for _ in g.responses]
        return torch.tensor(owned, dtype=torch.bool)

    @cached_property
    def names(self) -> list[str]:
        """Columns in a fixed order."""
        return sorted(self.columns)

    def groups(self) -> Iterator[Group]:
        """All groups in the order of the rows."""
        return (group for unit in self.units for group in unit.groups)

    def rows_of(self, unit: int, *roles: str, without: Sequence[str] = ()) -> list[int]:
        """Rows of a unit's groups in these roles; without any, of all but those left out."""
        row, found = self.first[unit], []
        for group in self.units[unit].groups:
            if group.role in roles or (not roles and group.role not in without):
                found += range(row, row + len(group.responses))
            row += len(group.responses)
        return found

    def own_column(self, name: str) -> Tensor:
        """A column of the own rows [own]."""
        return self.columns[name][self.own]

    def with_column(self, name: str, values: Tensor) -> "Split":
        """The same with one more column [rows], or [own] where only own responses have a value."""
        if len(values) != self.rows:
            whole = values.new_full((self.rows,), float("nan") if values.is_floating_point() else 0)
            values = whole.index_copy(0, self.own.nonzero()[:, 0], values)
        return evolve(self, columns={**self.columns, name: values})

    def fingerprint(self) -> str:
        """sha256 of all tokens and of the columns that hold no floats: those may be measured, and rounded otherwise."""
        digest = hashlib.sha256()
        for group in self.groups():
            for ids in (group.prompt, *group.responses):
                digest.update(array("q", [len(ids), *ids]))
        for name in self.names:
            if not self.columns[name].is_floating_point():
                digest.update(name.encode() + self.columns[name].numpy().tobytes())
        return digest.hexdigest()

    def where(self, mask: Bool[Tensor, "units"]) -> "Split":
        """The units that the mask names, with their rows."""
        kept = mask.nonzero()[:, 0].tolist()
        rows = torch.tensor([r for i in kept for r in range(self.first[i], self.first[i + 1])], dtype=torch.long)
        return Split(tuple(self.units[i] for i in kept), {name: x[rows] for name, x in self.columns.items()})


@frozen(eq=False)
class Round:
    """The units that training goes through before it asks for others; offline data are one round for ever."""

    train: Split
    val: Split
    number: int = 0

    def map(self, change: Callable[[Split], Split]) -> "Round":
        """Both sides changed alike."""
        return evolve(self, train=change(self.train), val=change(self.val))


class Feed(ABC):
    """Gives one round after another while training goes on: each is passed through once, in steps.

    Offline data need none. A subclass is named as `data.feed`; see tests/data/test_feed.py for a small one.
    """

    @abstractmethod
    def next(self, number: int, read: Round, method: Any) -> Round | None:
        """Round `number`, from 0; None ends the training.

        A killed run asks for the round that it was in once more: the same number must give the same units.

        Args:
            read: what the data module has read from its sources.
            method: with the policy as it is now.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to give the same rounds; plain types and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Takes the state of a checkpoint."""
