"""Modules that learn beside the policy: what a value, a mask or a degree is read with."""

from collections.abc import Callable

from attrs import field, frozen
from torch import nn


@frozen
class SideHead:
    """A module beside the policy, in an optimizer group of its own."""

    make: Callable[[], nn.Module]
    """Called once policy and reference are there."""
    lr: float
    options: dict[str, float] = field(factory=dict)
    """Further settings of the group, e.g. `weight_decay`, or `grad_clip`: its own limit on the gradient's norm."""
