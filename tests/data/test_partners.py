"""Partners for KTO's z0."""

import random
from collections import Counter

import pytest

from upo.data.partners import derangement


def prompts(*sizes: int, seed: int = 0) -> list[str]:
    """Units of as many prompts as there are sizes, shuffled."""
    made = [f"prompt {i}" for i, n in enumerate(sizes) for _ in range(n)]
    random.Random(seed).shuffle(made)
    return made


FAIR = [
    (1, 1),
    (2, 2),
    (1, 1, 1),
    (5, 3, 2),
    (1,) * 50,
    (10, 10),
    (4, 1, 1, 1, 1),
    (7, 6, 1),
    (3, 3, 3, 1),
    (25, 9, 8, 8),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", FAIR)
def test_another_prompt_each_unit_borrowed_once(sizes, seed):
    """As long as no prompt owns more than half of the units."""
    of = prompts(*sizes, seed=seed)
    partners = derangement(of, seed)
    assert sorted(partners) == list(range(len(of)))
    assert all(of[i] != of[j] for i, j in enumerate(partners))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", [(2, 1), (9, 1), (20, 3, 2), (5, 4), (100, 1, 1, 1)])
def test_one_prompt_that_owns_more_than_half(sizes, seed):
    """Everybody still meets another prompt; those few are shared out evenly."""
    of = prompts(*sizes, seed=seed)
    partners = derangement(of, seed)
    assert all(of[i] != of[j] for i, j in enumerate(partners))
    others = len(of) - max(sizes)
    used = Counter(j for i, j in enumerate(partners) if of[i] == "prompt 0")
    assert len(used) == others, "all of them are used"
    assert max(used.values()) - min(used.values()) <= 2


def test_by_seed_alone():
    of = prompts(*[1] * 60)
    assert derangement(of, 1) == derangement(of, 1) != derangement(of, 2)


def test_partners_follow_the_prompts_not_their_places():
    """The same split in another order gives the same couples."""
    of = [f"p{i}" for i in range(20)]
    back = of[::-1]
    a, b = derangement(of, 0), derangement(back, 0)
    assert {of[i]: of[j] for i, j in enumerate(a)} == {back[i]: back[j] for i, j in enumerate(b)}


@pytest.mark.parametrize("of", [[], ["a"], ["a", "a", "a"]])
def test_nobody_to_borrow_from(of):
    assert derangement(of, 0) is None
