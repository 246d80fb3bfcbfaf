"""What a loss may look at."""

import pytest
import torch

from upo.errors import UserError
from upo.models.logps import ResponseLogps

LOGPS = ResponseLogps(
    torch.tensor([-6.0, -2.0, -9.0, -4.0]),
    torch.tensor([3, 1, 9, 2]),
    torch.tensor([0, 0, 1, 1]),
    torch.tensor([-5.0, -3.0, -9.0, -1.0]),
    torch.arange(8.0).view(4, 2),
    {"prompt_hidden": torch.randn(2, 5)},
)


def test_mean_and_logratio():
    assert LOGPS.mean.tolist() == [-2.0, -2.0, -1.0, -2.0]
    assert LOGPS.logratio.tolist() == [-1.0, 1.0, 0.0, -3.0]


@pytest.mark.parametrize("rows", [slice(1, None, 2), torch.tensor([1, 3]), torch.tensor([False, True, False, True])])
def test_some_of_the_rows(rows):
    some = LOGPS[rows]
    assert some.logps.tolist() == [-2.0, -4.0] and some.lengths.tolist() == [1, 2]
    assert some.prompt_index.tolist() == [0, 1] and some.logratio.tolist() == [1.0, -3.0]
    assert some.rewards.tolist() == [[2.0, 3.0], [6.0, 7.0]]
    assert some.extras["prompt_hidden"].shape == (2, 5), "by prompt, to which prompt_index points"


def test_without_reference():
    bare = ResponseLogps(*(getattr(LOGPS, name) for name in ("logps", "lengths", "prompt_index")))
    assert bare[:2].reference_logps is None and bare[:2].rewards is None
    with pytest.raises(UserError, match=r"model\.reference"):
        _ = bare[:2].logratio


def test_sums_over_the_tokens_of_each_response():
    row = torch.tensor([0, 0, 0, 1, 2, 2, 3])
    whole = ResponseLogps(torch.zeros(4), torch.tensor([3, 1, 2, 1]), torch.tensor([0, 0, 1, 1]), row=row)
    values = torch.tensor([1.0, 2, 4, 8, 16, 32, 64], requires_grad=True)
    assert whole.sums(values).tolist() == [7, 8, 48, 64]
    assert whole[0::2].sums(values).tolist() == [7, 48]
    assert whole[1::2][1:].sums(values).tolist() == [64]
    assert whole[torch.tensor([3, 0])].sums(values).tolist() == [64, 7]
    assert whole[torch.tensor([False, False, True, False])].sums(values).tolist() == [48]
    (gradient,) = torch.autograd.grad(whole[1::2].sums(values).sum(), values)
    assert gradient.tolist() == [0, 0, 0, 1, 0, 0, 1]
