"""Sums within segments, against loops."""

import pytest
import torch

from upo.functional.segments import discounted_sums, later_sums, segment_means

SEGMENT = torch.tensor([0, 0, 0, 1, 3, 3])
X = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])


def slow(x: torch.Tensor, factor: float, first: int) -> list[float]:
    """sum_{i >= t + first} factor^(i - t) x_i in the segment of t."""
    own = SEGMENT.tolist()
    return [
        sum(factor ** (i - t) * x[i].item() for i in range(t + first, len(own)) if own[i] == own[t])
        for t in range(len(own))
    ]


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0])
def test_discounted_sums_stay_in_their_segment(factor):
    assert discounted_sums(X, SEGMENT, factor).tolist() == pytest.approx(slow(X, factor, 0))
    long = torch.ones(1000, dtype=torch.float64)
    got = discounted_sums(long, torch.zeros(1000, dtype=torch.long), 0.99)
    assert got[0].item() == pytest.approx((1 - 0.99**1000) / 0.01)
    assert discounted_sums(X[:1], SEGMENT[:1], factor).tolist() == [1.0]
    x = X.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: discounted_sums(x, SEGMENT, factor), x)


def test_later_sums_leave_the_place_itself_out():
    assert later_sums(X, SEGMENT).tolist() == slow(X, 1.0, 1) == [6, 4, 0, 0, 32, 0]
    assert not later_sums(X.clone().requires_grad_(), SEGMENT).requires_grad


def test_later_sums_do_not_lose_digits_behind_large_ones():
    x, segment = torch.tensor([1e8, 1e8, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    assert later_sums(x, segment).tolist() == [1e8, 0, 1, 0]


def test_means_of_segments():
    means = segment_means(X, SEGMENT, 4)
    assert means[[0, 1, 3]].tolist() == pytest.approx([7 / 3, 8.0, 24.0]) and means[2].isnan()
