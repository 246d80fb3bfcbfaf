"""Which kernel an optimizer gets."""

import copy

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from upo.runtime.optimizers import checked


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(n, 7, generator=generator)) for n in (3, 11)]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
    return made


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_one_kernel_does_what_many_did(kind: type[Optimizer]) -> None:
    plain, fused = parameters(), parameters()
    many, one = kind(plain, lr=0.1), checked(kind(fused, lr=0.1))
    assert [g["fused"] for g in one.param_groups] == [True]
    for _ in range(5):
        many.step()
        one.step()
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-6)


def test_what_the_user_chose_stays() -> None:
    assert checked(AdamW(parameters(), foreach=True)).param_groups[0]["fused"] is None
    assert checked(AdamW(parameters(), fused=False)).param_groups[0]["fused"] is False
    assert "fused" not in checked(RMSprop(parameters())).param_groups[0]


def test_a_checkpoint_from_before_goes_on() -> None:
    """Loading brings its groups, and with them the kernel it was trained with."""
    ours = parameters()
    old = AdamW(ours, lr=0.1)
    old.step()
    new = checked(AdamW(copy.deepcopy(ours), lr=0.1))
    new.load_state_dict(old.state_dict())
    for group in new.param_groups:
        for p, q in zip(group["params"], ours, strict=True):
            p.grad = q.grad
    old.step()
    new.step()
    torch.testing.assert_close(new.param_groups[0]["params"], ours)
