"""Named weighted means."""

import pytest
import torch

from upo.metrics.means import Means, wins


def test_weighted_mean_over_updates_of_any_size():
    means = Means(["loss", "margin", "never"])
    means.update(loss=(torch.tensor([1.0, 2.0]), torch.tensor([3, 1])), margin=torch.tensor([4.0]))
    means.update(loss=(torch.tensor([10.0]), 4), margin=torch.tensor([]))
    got = means.compute()
    assert {k: v.item() for k, v in got.items()} == pytest.approx({"loss": (3 + 2 + 40) / 8, "margin": 4.0})
    means.reset()
    assert means.compute() == {}


def test_many_small_values_beside_a_large_one_are_not_lost():
    means = Means(["x"])
    means.update(x=torch.tensor([1e8]))
    for _ in range(1000):
        means.update(x=torch.tensor([1.0]))
    assert means.sums[0, 0].item() == 1e8 + 1000


def test_a_metric_that_nobody_declared_is_an_error():
    with pytest.raises(ValueError):
        Means(["x"]).update(y=torch.ones(1))


def test_carries_no_graph():
    x = torch.ones(2, requires_grad=True)
    means = Means(["x"])
    means.update(x=x * 2)
    assert not means.compute()["x"].requires_grad


def test_wins():
    assert wins(torch.tensor([0.1, -5.0, 0.0, 1e-30])).tolist() == [1.0, 0.0, 0.5, 1.0]
