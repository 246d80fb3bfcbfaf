"""Seeds by place: the numbers that all earlier runs were trained with."""

import ast
from pathlib import Path

import pytest

from upo.runtime.seeding import seed_at

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("args", "options", "expected"),
    [
        ((0, 0), {}, 0),
        ((0, 7), {}, 7),
        ((3, 2), {}, 3_000_011),
        ((1, 2, 3), {}, 1_023_762),
        ((5, 19), {"places": 20}, 119),
    ],
)
def test_numbers_stay_what_they_were(args: tuple[int, ...], options: dict[str, int], expected: int) -> None:
    assert seed_at(*args, **options) == expected


def test_no_two_places_share_a_seed() -> None:
    assert len({seed_at(s, p, places=20) for s in range(9) for p in range(20)}) == 180


def test_nobody_else_spells_the_formula() -> None:
    for file in (ROOT / "upo").rglob("*.py"):
        if file.name != "seeding.py":
            numbers = {x.value for x in ast.walk(ast.parse(file.read_text())) if isinstance(x, ast.Constant)}
            assert not numbers & {1_000_003, 7_919}, file
