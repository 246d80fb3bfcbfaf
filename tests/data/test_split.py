"""Splits by prompt and weighted mixing."""

from collections import Counter
from random import Random

import pytest

from upo.data.example import Example, Response, prompt_key
from upo.data.report import DataReport
from upo.data.source import Source
from upo.data.split import mix, split_by_prompt
from upo.errors import UserError


def examples(prompts: list[str], source: str = "a") -> list[Example]:
    return [Example(p, (Response(f"{source} {i}"),), source=source) for i, p in enumerate(prompts)]


def prompts(split: list[Example]) -> set[str]:
    return {prompt_key(e.prompt) for e in split}


EVERY = examples([f"prompt {i % 70}" for i in range(200)])


@pytest.mark.parametrize("validation", [0, 1, 7, 69, 0.0, 0.3])
def test_no_prompt_on_both_sides_and_nothing_lost(validation):
    train, val = split_by_prompt(EVERY, validation, seed=3)
    assert not prompts(train) & prompts(val)
    assert Counter(e.responses[0].text for e in train + val) == Counter(e.responses[0].text for e in EVERY)
    if isinstance(validation, int):
        assert len(prompts(val)) == validation


def test_sides_do_not_depend_on_order_of_sources():
    other = examples([f"prompt {i}" for i in range(40, 90)], "b")
    shuffled = Random(0).sample(EVERY, len(EVERY))
    for validation in (11, 0.25):
        one = split_by_prompt(EVERY + other, validation, seed=1)
        two = split_by_prompt(other + shuffled, validation, seed=1)
        assert [prompts(side) for side in one] == [prompts(side) for side in two]


def test_with_a_share_new_data_moves_no_prompt():
    more = EVERY + examples([f"new {i}" for i in range(300)], "b")
    _, val = split_by_prompt(EVERY, 0.25, seed=1)
    train_more, val_more = split_by_prompt(more, 0.25, seed=1)
    assert prompts(val) <= prompts(val_more)
    share = len(prompts(val_more)) / len(prompts(train_more + val_more))
    assert abs(share - 0.25) < 0.07


def test_seed_changes_the_split_and_the_same_seed_does_not():
    assert prompts(split_by_prompt(EVERY, 20, seed=0)[1]) == prompts(split_by_prompt(EVERY, 20, seed=0)[1])
    assert prompts(split_by_prompt(EVERY, 20, seed=0)[1]) != prompts(split_by_prompt(EVERY, 20, seed=1)[1])


def test_split_is_the_same_on_every_machine():
    # recomputed by hand: smallest sha256(f"{seed}\x1d{prompt}"); Python's own hash() would change from run to run
    import hashlib

    ordered = sorted(prompts(EVERY), key=lambda p: hashlib.sha256(f"5\x1d{p}".encode()).hexdigest())
    assert prompts(split_by_prompt(EVERY, 4, seed=5)[1]) == set(ordered[:4])


@pytest.mark.parametrize(
    ("validation", "message"), [(70, "70 of 70 prompts"), (-1, "lower"), (1.0, "whole number"), (-0.1, "share")]
)
def test_impossible_splits(validation, message):
    with pytest.raises(UserError, match=message):
        split_by_prompt(EVERY, validation, seed=0)


@pytest.mark.turns(2)
def test_conversations_and_real_data(shared):
    hh = Source("hh", path=str(shared / "data" / "hh")).examples(DataReport())
    train, val = split_by_prompt(hh, 500, seed=0)
    assert len(prompts(val)) == 500
    assert not prompts(train) & prompts(val)
    assert len(train) + len(val) == len(hh)
    assert len(prompts(hh)) < len(hh)  # or the test would say nothing about shared prompts


def times(mixture: list[Example]) -> Counter[str]:
    return Counter(e.responses[0].text for e in mixture)


def test_weights():
    a, b, c = (examples([f"{s} {i}" for i in range(100)], s) for s in "abc")
    mixture = mix([(a, 1.0), (b, 0.5), (c, 2.25)], seed=0)
    count = times(mixture)
    assert [sum(n for text, n in count.items() if text[0] == s) for s in "abc"] == [100, 50, 225]
    assert all(count[e.responses[0].text] == 1 for e in a)
    assert Counter(count[e.responses[0].text] for e in c) == {2: 75, 3: 25}
    half = [e.responses[0].text for e in mixture if e.source == "b"]
    assert len(set(half)) == 50
    assert half != [e.responses[0].text for e in b[:50]]


def test_mixing_is_fixed_by_the_seed_and_independent_of_other_parts():
    a, b = examples([str(i) for i in range(40)]), examples([str(i) for i in range(30)], "b")
    assert mix([(a, 0.5)], seed=1) == mix([(a, 0.5)], seed=1)
    assert times(mix([(a, 0.5)], seed=1)) != times(mix([(a, 0.5)], seed=2))
    with_b = mix([(b, 1.0), (a, 0.5)], seed=1)
    assert [e for e in with_b if e.source == "a"] == mix([(a, 0.5)], seed=1)
