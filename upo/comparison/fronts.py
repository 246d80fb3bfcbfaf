"""Fronts: what a method reaches over its strengths when two figures are traded against each other.

A front's points are the means of groups, its family all groups of one method (in a study: of one entry of `runs`).
Both axes are turned so that more is better; KL counts negatively.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from upo.comparison.runs import Group

PREFERENCES = ("win_rate_vs_chosen", "win_rate_vs_reference")
COSTS = ("kl",)

Point = tuple[float, float]


def pareto(points: Sequence[Point]) -> list[bool]:
    """Which points no other one beats: nowhere worse and somewhere better. Of equal points all stay."""
    return [
        not any(a >= x and b >= y and (a > x or b > y) for j, (a, b) in enumerate(points) if j != i)
        for i, (x, y) in enumerate(points)
    ]


def hypervolume(points: Sequence[Point], start: Point) -> float:
    """Area of what some point beats, above and right of `start` (Zitzler and Thiele 1999); exact.

    In units of one axis times the other. In two dimensions it is a sum of rectangles: with the points sorted by x
    from the right, each adds what it reaches higher than those before.
    """
    area, height = 0.0, start[1]
    for x, y in sorted(points, reverse=True):
        if x > start[0] and y > height:
            area += (x - start[0]) * (y - height)
            height = y
    return area


def expected_utility(points: Sequence[Point]) -> float:
    """Mean of max_i w x_i + (1 - w) y_i over weights w drawn evenly from [0, 1] (Zintgraf et al. 2015); exact.

    What a user gets on average who weighs the axes by w and picks the best policy for it. The maximum is linear between
    the weights at which two points are equally good, so that trapezoids between these integrate it exactly.
    """
    x, y = np.asarray(points, dtype=np.float64).T
    rise = x - y
    with np.errstate(divide="ignore", invalid="ignore"):
        cross = ((y[None] - y[:, None]) / (rise[:, None] - rise[None])).ravel()
    weights = np.unique(np.concatenate([[0.0, 1.0], cross[(cross > 0) & (cross < 1)]]))
    best = (weights[:, None] * x + (1 - weights[:, None]) * y).max(axis=1)
    return float(np.trapezoid(best, weights))


def sparsity(points: Sequence[Point]) -> float:
    """Mean squared gap between neighbours of the front, summed over the axes (Xu et al. 2020); 0 for one point.

    Smaller is denser. Points that others beat do not count.
    """
    front = [point for point, best in zip(points, pareto(points), strict=True) if best]
    if len(front) < 2:
        return 0.0
    gaps = np.diff(np.sort(np.asarray(front), axis=0), axis=0)
    return float((gaps**2).sum() / (len(front) - 1))


def axes(groups: "Sequence[Group]", names: Sequence[str]) -> list[tuple[str, str]]:
    """Which figures are drawn against which (x, y): preference against each objective and KL, objective against KL."""
    measured = [name for name in names if all(group.mean(f"policy/{name}") for group in groups)]
    preference = next((name for name in PREFERENCES if name in measured), None)
    rewards = [name for name in measured if name.startswith("rewards/") and name != "rewards/judge"]
    objectives = [name for name in ("objective",) if name in measured] + (rewards if len(rewards) > 1 else [])
    pairs = [(name, preference) for name in [*(objectives or rewards), "kl"] if preference and name in measured]
    return pairs + [("kl", name) for name in objectives[:1] if "kl" in measured]


def fronts(groups: "Sequence[Group]", names: Sequence[str]) -> list[dict[str, Any]]:
    """Every front as it stands in comparison.json.

    `start` is the reference policy, where it was measured: hypervolumes lie above it, in KL right of the largest KL
    of all groups. Where it was not, the worst value of all groups takes its place.
    """
    return [_front(groups, x, y) for x, y in axes(groups, names)]


def _front(groups: "Sequence[Group]", x: str, y: str) -> dict[str, Any]:
    from upo.comparison.runs import Group

    signs = [-1.0 if name in COSTS else 1.0 for name in (x, y)]
    rows = []
    for group in groups:
        means = [group.mean(f"policy/{name}") for name in (x, y)]
        single = [Group(group.name, [run]) for run in group.runs]
        row: dict[str, Any] = {"name": group.name, "family": group.family, "settings": group.settings}
        for axis, mean in zip("xy", means, strict=True):
            assert mean is not None
            row[axis] = {"mean": mean.mean, "low": mean.low, "high": mean.high}
        row["runs"] = [[_plain_mean(g, x), _plain_mean(g, y), g.seeds[0]] for g in single]
        rows.append(row)
    start = [0.0 if name in COSTS else _start(groups, name) for name in (x, y)]
    turned = [tuple(s * row[a]["mean"] for s, a in zip(signs, "xy", strict=True)) for row in rows]
    worst = [min(point[i] for point in turned) for i in (0, 1)]
    corner = tuple(
        worst[i] if name in COSTS or begin is None else begin
        for i, (name, begin) in enumerate(zip((x, y), start, strict=True))
    )
    families = {}
    for family in dict.fromkeys(row["family"] for row in rows):
        own = [i for i, row in enumerate(rows) if row["family"] == family]
        points = [turned[i] for i in own]
        for i, best in zip(own, pareto(points), strict=True):
            rows[i]["front"] = best
        families[family] = {"points": len(points), "hypervolume": hypervolume(points, corner)}
        if x not in COSTS:
            families[family] |= {"expected_utility": expected_utility(points), "sparsity": sparsity(points)}
    return {"x": x, "y": y, "start": None if None in start else start, "corner": [s * c for s, c in zip(signs, corner,
            strict=True)], "points": rows, "families": families}  # fmt: skip


def _start(groups: "Sequence[Group]", name: str) -> float | None:
    """The reference policy's figure; against itself it wins half of the time."""
    if name == "win_rate_vs_reference":
        return 0.5
    return next((found.mean for group in groups if (found := group.mean(f"reference/{name}")) is not None), None)


def _plain_mean(group: "Group", name: str) -> float:
    values = [value for _, value in group.runs[0].values(f"policy/{name}")]
    return sum(values) / len(values)
