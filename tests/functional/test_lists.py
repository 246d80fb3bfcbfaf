"""Lists of unequal length as a rectangle."""

import torch

from upo.functional.lists import masked_log_softmax, masked_softmax, rectangle


def test_places_of_lists_of_two_one_and_three():
    rows, mask = rectangle(torch.tensor([0, 0, 1, 2, 2, 2]))
    assert rows.tolist() == [[0, 1, 0], [2, 2, 2], [3, 4, 5]]
    assert mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]


def test_softmax_sees_only_what_is_there():
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    for i, k in enumerate((2, 3)):
        torch.testing.assert_close(masked_log_softmax(x, mask)[i, :k], x[i, :k].log_softmax(0))
        torch.testing.assert_close(masked_softmax(x, mask)[i, :k], x[i, :k].softmax(0))
    assert masked_log_softmax(x, mask)[0, 2] == masked_softmax(x, mask)[0, 2] == 0
    for f in (masked_log_softmax, masked_softmax):
        (gradient,) = torch.autograd.grad((f(x, mask) * torch.arange(3)).sum(), x)
        assert gradient.isfinite().all() and gradient[0, 2] == 0 and gradient.abs().sum() > 0
        assert torch.autograd.gradcheck(lambda y, f=f: f(y, mask), x)
