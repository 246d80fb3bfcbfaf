"""Modules that are trained beside the policy, e.g. value heads."""

from collections.abc import Callable

from attrs import field, frozen
from torch import nn


@frozen
class SideHead:
    """A module beside the policy, in an optimizer group of its own."""

    make: Callable[[], nn.Module]
    """Makes the module; called after policy and reference are built."""
    lr: float
    """Learning rate of the group."""
    options: dict[str, float] = field(factory=dict)
    """Further settings of the group: `weight_decay` or others of the optimizer, and `grad_clip`, its own limit on the
    norm of the gradient."""
