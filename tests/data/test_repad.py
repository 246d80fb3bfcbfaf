"""Packed responses turned into padded ones are those that were padded at once."""

import pytest
import torch
from attrs import fields
from tiny import arrange, units

from upo.data.layout import Responses
from upo.data.repad import padded


@pytest.mark.parametrize(
    "work",
    [
        units([(3, [9, 2]), (5, [1]), (1, [4, 14, 7, 1, 2]), (20, [2, 3]), (1, [1]), (7, [1, 1, 6])]),
        units([(1, [1])]),
        units([(40, [20, 3]), (2, [30])]),
    ],
)
def test_equals_the_padded_layout(work):
    ours, direct = padded(arrange(work)), arrange(work, "padded")
    for name in (f.name for f in fields(Responses)):
        x, y = getattr(ours, name), getattr(direct, name)
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, name
