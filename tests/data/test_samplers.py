"""Steps: every unit once, the same order on any number of ranks, micro-batches within the budget."""

import random
from collections import Counter

import pytest

from upo.data.samplers import StepPlan, StepSampler, one_pass

rng = random.Random(0)
COSTS = [min(900, int(rng.lognormvariate(4, 1)) + 2) for _ in range(203)]
"""As text lengths are: many short, a few very long."""


def sampler(costs=COSTS, units=16, budget=512, epoch=0, **options) -> StepSampler:
    given = {"shuffle": True, "seed": 5} | options
    return StepSampler(costs, units_per_step=units, tokens_per_microbatch=budget, start=lambda: (epoch, 0), **given)


def own(plan: StepPlan) -> list[int]:
    """What a rank trains on."""
    full = len(plan.micro_batches) - plan.dummies
    return [u for b in plan.micro_batches[:full] for u in b]


def ranks(world_size: int, **options) -> list[tuple[StepPlan, ...]]:
    """Steps; of each the plans of all ranks."""
    return list(zip(*(sampler(rank=r, world_size=world_size, **options) for r in range(world_size)), strict=True))


@pytest.mark.parametrize("bucket_by_length", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize(("units", "budget"), [(16, 512), (1, 100), (7, 1), (500, 10**6), (203, 300)])
def test_every_unit_once_an_epoch_on_any_number_of_ranks(world_size, units, budget, bucket_by_length):
    seen: Counter[int] = Counter()
    steps = ranks(world_size, units=units, budget=budget, bucket_by_length=bucket_by_length)
    assert len(steps) == len(sampler(units=units)) == -(-203 // units)
    for plans in steps:
        trained = [u for plan in plans for u in own(plan)]
        assert sorted(trained) == sorted(plans[0].units) and len(set(trained)) == len(trained)
        assert all(plan.units == plans[0].units for plan in plans)
        assert len({len(plan.micro_batches) for plan in plans}) == 1, "or sharded forwards would hang"
        seen.update(trained)
    assert seen == Counter(range(203))


def test_the_same_units_in_each_step_whatever_the_ranks_and_the_budget():
    order = [plan.units for plan in sampler()]
    for world_size in (2, 3):
        assert [plans[0].units for plans in ranks(world_size, budget=77)] == order


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("budget", [100, 512, 4000])
def test_the_budget_holds_unless_one_unit_is_larger(world_size, budget):
    sizes = []
    for plans in ranks(world_size, budget=budget):
        for plan in plans:
            for batch in plan.micro_batches:
                assert batch, "never empty"
                assert len(batch) == 1 or sum(COSTS[u] for u in batch) <= budget
                sizes.append(len(batch))
    assert max(sizes) > 1


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_fillers_only_where_there_are_fewer_units_than_a_full_round(world_size):
    """A dummy costs a forward pass: none as long as a micro-batch could be halved instead."""
    for units in (1, 2, 3, 5, 16):
        for plans in ranks(world_size, units=units, budget=10**6):
            n = len(plans[0].units)
            assert sum(plan.dummies for plan in plans) == (0 if n >= world_size else world_size - n)
            assert all(plan.dummies <= 1 for plan in plans)
            for plan in plans:
                assert all(b == [plan.units[0]] for b in plan.micro_batches[len(plan.micro_batches) - plan.dummies :])


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_load_is_shared(world_size):
    """No rank has much more to do than the others, over an epoch of several micro-batches a step."""
    load = [0] * world_size
    for plans in ranks(world_size, units=64, budget=1000):
        for rank, plan in enumerate(plans):
            load[rank] += sum(COSTS[u] for u in own(plan))
    assert max(load) / min(load) < 1.03


@pytest.mark.parametrize(("budget", "units"), [(1024, 64), (2048, 203)])
def test_micro_batches_are_full_and_equally_heavy(budget, units):
    """As few as the sum allows, within one; none of several units is lighter than half of the heaviest."""
    for plan in sampler(costs=[min(c, 500) for c in COSTS], units=units, budget=budget):
        loads = [sum(min(COSTS[u], 500) for u in b) for b in plan.micro_batches]
        assert len(loads) <= -(-sum(loads) // budget) + 1
        assert min(loads) > 0.5 * max(loads) and max(loads) <= budget


def test_alike_keeps_like_lengths_together():
    """Padded to the longest of its micro-batch, an epoch costs less than with balanced ones."""

    def padded(bucket_by_length: bool) -> int:
        plans = sampler(units=64, bucket_by_length=bucket_by_length)
        return sum(len(b) * max(COSTS[u] for u in b) for plan in plans for b in plan.micro_batches)

    assert padded(True) < 0.7 * padded(False)


def test_shuffled_by_seed_and_epoch():
    def order(**options) -> list[int]:
        return [u for plan in sampler(**options) for u in plan.units]

    assert order() == order() != order(epoch=1)
    assert order(seed=6) not in (order(), order(epoch=1))
    assert order(epoch=1) == order(epoch=1) != sorted(order())
    assert order(shuffle=False) == order(shuffle=False, epoch=3) == list(range(203))


def test_neighbouring_seeds_and_epochs_never_meet():
    orders = [tuple(p.units[0] for p in sampler(seed=s, epoch=e)) for s in range(4) for e in range(4)]
    assert len(set(orders)) == 16


@pytest.mark.parametrize("world_size", [1, 2])
def test_resume_goes_on_where_it_stopped_and_the_next_epoch_is_whole(world_size):
    whole = list(sampler(epoch=2, rank=world_size - 1, world_size=world_size))
    for position in (0, 1, 5, len(whole)):
        resumed = sampler(epoch=2, rank=world_size - 1, world_size=world_size)
        resumed.start = lambda at=position: (2, at)
        assert list(resumed) == whole[position:]
        assert len(resumed) == len(whole), "or Lightning would end the epoch early"
        resumed.start = lambda: (3, 0)
        assert list(resumed) == list(sampler(epoch=3, rank=world_size - 1, world_size=world_size))


def test_the_epoch_is_asked_for_when_an_iterator_starts():
    epoch, one = 0, sampler()
    one.start = lambda: (epoch, 0)
    first = list(one)
    epoch = 1
    assert list(one) == list(sampler(epoch=1)) != first


def test_nothing_to_sample():
    assert list(sampler(costs=[])) == [] and len(sampler(costs=[])) == 0


@pytest.mark.parametrize("bucket_by_length", [True, False])
def test_one_pass_takes_every_unit_once_and_none_of_none(bucket_by_length: bool) -> None:
    shares = [one_pass([5, 9, 2], 9, bucket_by_length=bucket_by_length, rank=rank, world_size=2) for rank in range(2)]
    taken = [u for plan in shares for b in plan.micro_batches[: len(plan.micro_batches) - plan.dummies] for u in b]
    assert sorted(taken) == [0, 1, 2] and len({len(plan.micro_batches) for plan in shares}) == 1
    assert one_pass([], 9, bucket_by_length=bucket_by_length, world_size=2).micro_batches == []
