"""Where reference log-probs come from. None of these is part of the method's module tree or of its checkpoints."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from upo.data.layout import Responses
from upo.data.rounds import Round
from upo.data.units import Group
from upo.errors import UserError
from upo.models.adapters import START, below, only
from upo.models.logps import DIVERGENCES
from upo.models.policy import Policy
from upo.ops.linear_head import LinearHead

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Reference(ABC):
    """Log-probs that a policy is measured against."""

    provides: ClassVar[frozenset[str]] = frozenset({"logps"})
    """Quantities that it knows, by their names in `upo.models.logps.AXIS`."""
    instead: ClassVar[str] = "set model.reference: FrozenReference"
    """What to do where that is too little."""
    starts_as_policy: bool = False
    """Whether all log-ratios are 0 before the first step: checked there."""
    dtype: str | None = None
    """Of its own parameters and arithmetic, where they are not to be the policy's."""

    @abstractmethod
    def build(self, policy: Policy) -> None:
        """Makes the reference ready; called once, with the policy as it starts."""

    def load_model(self) -> Policy | None:
        """The model itself, e.g. to generate with: read from the disk where it is not in memory; None without one."""
        return None

    @abstractmethod
    def logps(self, responses: Responses) -> Tensor:
        """Summed log-probs [N] in nats, without gradient, on the responses' device."""

    def score(self, responses: Responses, wanted: Collection[str] = ()) -> dict[str, Tensor]:
        """`logps` and what else is wanted by name, without gradient; sums that a batch brings along are not computed.

        Args:
            wanted: some of what this reference `provides`.
        """
        if wanted:
            return self.outputs(responses, wanted)
        known = responses.reference_logps
        return {"logps": self.logps(responses) if known is None else known}

    def outputs(self, responses: Responses, names: Collection[str]) -> dict[str, Tensor]:
        """`logps` and more by name, computed as `Policy.forward` does, for those who `provide` it."""
        raise NotImplementedError

    def stored(self, trainer: Any, round: Round) -> Callable[[Sequence[Group]], Tensor] | None:
        """What finds the log-probs of a round's groups, where they are known before training; called at its start."""
        return None

    def linear_head(self) -> LinearHead:
        """The output head, for divergences over the whole vocabulary; those who give `hidden` have one."""
        raise NotImplementedError


class FrozenReference(Reference):
    """A frozen model: a copy of the policy as it starts, or another one."""

    provides = Policy.provides - DIVERGENCES

    def __init__(self, path: str | None = None):
        """
        Args:
            path: hub name or local folder of another model with the same tokenizer; null copies the policy. Where it is
                policy.path, log-ratios must be 0 before the first step, as for a copy.
        """
        self.path = path
        self.starts_as_policy = path is None
        self.model: Policy | None = None

    def build(self, policy: Policy) -> None:
        if self.path is None:
            if policy.adapter is not None:
                warnings.warn(
                    "FrozenReference copies the whole model, though the one below policy.adapter stays as it is; "
                    "model.reference: AdapterReference needs no copy, and is enough unless a callback moves it"
                )
            self.model = policy.frozen_copy()
            return
        self.model = policy.like(self.path)
        self.starts_as_policy = is_start(policy, self.path)
        self.model.build()
        self.model.requires_grad_(False).eval()

    def load_model(self) -> Policy | None:
        return self.model

    def logps(self, responses: Responses) -> Tensor:
        return self.outputs(responses, ())["logps"]

    @torch.no_grad()
    def outputs(self, responses: Responses, names: Collection[str]) -> dict[str, Tensor]:
        assert self.model is not None, "build() comes first"
        return placed(self.model, responses.input_ids.device)(responses, names)

    def linear_head(self) -> LinearHead:
        assert self.model is not None, "build() comes first"
        return self.model.linear_head()


class AdapterReference(Reference):
    """The policy as it starts, from the policy's own weights: the model below `policy.adapter`, or, where that starts
    from an adapter, the model with this one as it was. Costs no memory."""

    provides = Policy.provides - DIVERGENCES
    starts_as_policy = True

    def __init__(self) -> None:
        self.model: Policy | None = None

    def build(self, policy: Policy) -> None:
        self.model = initial_policy(policy)
        start = policy.adapter and policy.adapter.path
        say = rank_zero_only(print)
        say(f"reference: {policy.path or 'the model'} with " + (f"the adapter {start}" if start else "its adapter off"))

    def load_model(self) -> Policy | None:
        return self.model

    def logps(self, responses: Responses) -> Tensor:
        return self.outputs(responses, ())["logps"]

    @torch.no_grad()
    def outputs(self, responses: Responses, names: Collection[str]) -> dict[str, Tensor]:
        assert self.model is not None, "build() comes first"
        return self.model(responses, names)

    def linear_head(self) -> LinearHead:
        assert self.model is not None, "build() comes first"
        with torch.no_grad():
            return self.model.linear_head()


class _AdapterView(Policy):  # private, or configs would offer it as a choice of policy
    """A policy whose weights are another one's, with another of its adapters, or none, active."""

    def __init__(self, policy: Policy, adapter: str | None = None):
        """
        Args:
            policy: the holder of the weights; its forward pass runs, with whatever a strategy has wrapped around it.
            adapter: what the active adapter is called in its model; null: none is active.
        """
        nn.Module.__init__(self)  # without settings: there is nothing to build
        self.policy, self.active_adapter = policy, adapter

    @property
    def holder(self) -> Policy:
        return self.policy

    @property
    def model(self) -> "PreTrainedModel":
        return self.policy.model

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return self.policy.tokenizer

    @property
    def model_config(self) -> "PretrainedConfig":
        return self.policy.model_config

    def active(self) -> AbstractContextManager:
        return only(self.model, self.active_adapter)

    def weights(self) -> dict[str, Tensor]:
        return below(self.model, self.active_adapter)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        with self.active():
            return self.policy(*args, **kwargs)

    def linear_head(self) -> LinearHead:
        with self.active():
            return self.policy.linear_head()


def initial_policy(policy: Policy) -> Policy:
    """A policy with an adapter as it was before training, on the same weights.

    Raises:
        UserError: a policy without an adapter.
    """
    if policy.adapter is None:
        raise UserError("AdapterReference needs policy.adapter; set model.reference: FrozenReference")
    return _AdapterView(policy, START if policy.adapter.path else None)


def is_start(policy: Policy, path: str, dtype: str | None = None) -> bool:
    """Whether the model at a path, in a dtype (null: the policy's), computes what the policy does before training."""
    changed = policy.quantization or policy.controls or (policy.adapter is not None and policy.adapter.path)
    same_dtype = dtype is None or getattr(torch, dtype) == policy.dtype
    return path == policy.path and same_dtype and not changed


def placed(model: Policy, device: torch.device) -> Policy:
    """The model, on a device; shards lie where they belong."""
    if not isinstance(model.holder, FSDPModule) and next(model.parameters()).device != device:
        model.to(device)
    return model
