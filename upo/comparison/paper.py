"""Our cells beside the published ones, for runs at the paper's scale."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from upo.comparison.published import MODELS, TABLES, column_of, row_of
from upo.errors import UserError

if TYPE_CHECKING:
    from upo.comparison.runs import Group


def beside_published(groups: "Sequence[Group]") -> list[dict[str, Any]]:
    """Each published table with the figures of our runs; those that no run has measured stay without `ours`.

    Raises:
        UserError: no run is of a published method and model.
    """
    places = {
        (row, column): group
        for group in groups
        if (row := row_of(group.method)) is not None
        and (column := column_of(group.runs[0].settings)) is not None
    }  # fmt: skip
    if not places:
        raise UserError(
            f"--paper: no run is of a published method ({', '.join(TABLES[0].rows)}) and model ({', '.join(MODELS)}); "
            "models are known by model.policy.path"
        )
    tables = []
    for table in TABLES:
        cells: dict[str, dict[str, Any]] = {}
        for row, values in table.rows.items():
            for column, published in enumerate(values):
                cell: dict[str, Any] = {"published": published}
                if (row, column) in places:
                    cell |= _ours(places[row, column], table.figure, table.scale)
                cells.setdefault(row, {})[MODELS[column]] = cell
        tables.append({"title": table.title, "cells": cells})
    return tables


def _ours(group: "Group", figure: str, scale: float) -> dict[str, float]:
    """Mean over seeds, with the mean half width of the single runs' intervals where they have them."""
    names = {name for run in group.runs for name in run.evaluation["metrics"] if re.fullmatch(figure, name)}
    if not names:
        return {}
    name = min(names)
    ours = group.plain(name)
    low, high = group.plain(f"{name}_low"), group.plain(f"{name}_high")
    found = {"ours": scale * ours} if ours is not None else {}
    return found | ({} if low is None or high is None else {"half": scale * (high - low) / 2})
