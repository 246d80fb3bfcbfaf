"""Intervals: known values, and that 95 % means 95 %."""

import numpy as np
import pytest

from upo.metrics.intervals import bootstrap, crossed, paired_difference, wilson


def test_wilson_agrees_with_the_textbook():
    # 81 of 263: Agresti and Coull's example gives (0.2553, 0.3662)
    found = wilson([1.0] * 81 + [0.0] * 182)
    assert found.low == pytest.approx(0.2553, abs=3e-4)
    assert found.high == pytest.approx(0.3662, abs=3e-4)
    assert (found.mean, found.n) == (pytest.approx(81 / 263), 263)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_wilson_stays_open_where_all_agree(value: float):
    found = wilson([value] * 20)
    assert 0 <= found.low <= found.high <= 1
    assert found.high - found.low == pytest.approx(0.161, abs=2e-3)  # z^2 / (n + z^2)


def test_repeated_values_of_one_prompt_do_not_narrow_an_interval():
    once = wilson([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    fivefold = wilson([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0] * 5, groups=list(range(8)) * 5)
    assert (fivefold.low, fivefold.high) == (pytest.approx(once.low), pytest.approx(once.high))
    means = [0.3, 0.9, 0.1, 0.4]
    assert bootstrap(means * 5, groups=list("abcd") * 5).low == pytest.approx(bootstrap(means).low)


def test_equal_runs_differ_by_nothing():
    found = paired_difference([0.1, 0.7, 0.4], [0.1, 0.7, 0.4])
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_a_difference_is_paired():
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=200) * 10  # prompts differ much, runs by 0.1
    found = paired_difference((prompts + 0.1 + rng.normal(size=200) * 0.1).tolist(), prompts.tolist())
    assert 0.05 < found.low < found.mean < found.high < 0.15


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(1).normal(size=50).tolist()
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_no_value_is_an_error():
    with pytest.raises(ValueError, match="no value"):
        wilson([])
    with pytest.raises(ValueError, match="a pair needs both"):
        paired_difference([1.0], [1.0, 2.0])


def coverage(interval, simulate, truth: float, times: int = 400) -> float:
    rng = np.random.default_rng(7)
    found = [interval(*simulate(rng)) for _ in range(times)]
    return float(np.mean([x.low <= truth <= x.high for x in found]))


def test_wilson_covers_a_share_with_ties():
    def simulate(rng):
        return (rng.choice([1.0, 0.5, 0.0], p=[0.3, 0.5, 0.2], size=150).tolist(),)

    assert 0.92 < coverage(wilson, simulate, 0.55) < 0.98


def test_wilson_covers_clustered_pairs():
    def simulate(rng):
        chance = rng.beta(2, 1, size=80)  # each prompt has its own difficulty, mean 2/3
        return (rng.random((5, 80)) < chance).astype(float).ravel().tolist(), list(range(80)) * 5

    assert 0.92 < coverage(wilson, simulate, 2 / 3) < 0.98

    def as_if_independent(rng):
        return (simulate(rng)[0],)

    assert coverage(wilson, as_if_independent, 2 / 3) < 0.9  # what counting pairs instead of prompts would give


def test_bootstrap_covers_a_skewed_mean():
    def simulate(rng):
        return (rng.exponential(size=200).tolist(),)

    assert 0.9 < coverage(bootstrap, simulate, 1.0, times=120) < 1.0


def test_one_seed_gives_students_interval_over_prompts():
    values = [0.1, 0.9, 0.4, 0.6, 0.3, 0.8]
    found = crossed(values, list("abcdef"), [0] * 6)
    half = 2.5706 * np.std(values, ddof=1) / 6**0.5  # Student's t with 5 degrees of freedom
    assert found.high - found.mean == pytest.approx(half, rel=1e-4)


def test_seeds_that_agree_narrow_and_seeds_that_disagree_widen():
    rng = np.random.default_rng(0)
    prompts = list(range(100)) * 3
    seeds = [k for k in range(3) for _ in range(100)]
    noise = rng.normal(size=300)
    alike = crossed(noise.tolist(), prompts, seeds)
    apart = crossed((noise + np.repeat([-1.0, 0.0, 1.0], 100)).tolist(), prompts, seeds)
    one = crossed(noise[:100].tolist(), prompts[:100], seeds[:100])
    assert alike.high - alike.low < one.high - one.low
    assert apart.high - apart.low > 4 * (alike.high - alike.low)


@pytest.mark.turns(2)
@pytest.mark.parametrize("seed_effect", [0.0, 0.3])
@pytest.mark.parametrize("shared", [True, False])
def test_crossed_covers_prompts_and_seeds(seed_effect: float, shared: bool):
    """Whether seeds share their prompts or, as after another split, have their own."""

    def simulate(rng):
        effect = rng.normal(size=(1, 80) if shared else (3, 80)) * 0.5
        x = effect + rng.normal(size=(3, 1)) * seed_effect + rng.normal(size=(3, 80))
        prompts = [(0 if shared else k, p) for k in range(3) for p in range(80)]
        return x.ravel().tolist(), prompts, [k for k in range(3) for _ in range(80)]

    # three seeds cannot tell a small seed effect from none: there it covers a little less than it says
    assert coverage(crossed, simulate, 0.0, times=300) > (0.84 if seed_effect else 0.92)

    def seeds_ignored(values, prompts, _):
        return crossed(values, prompts, [0] * len(values))

    if seed_effect:
        assert coverage(seeds_ignored, simulate, 0.0, times=300) < 0.7
