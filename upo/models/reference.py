"""References: where reference log-probs come from. They are no part of the method's module tree or its checkpoints."""

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
from upo.models.loading import base_hash
from upo.models.logps import DIVERGENCES
from upo.models.policy import Policy
from upo.ops.linear_head import LinearHead

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Reference(ABC):
    """Gives reference log-probs: those that a policy's are compared with."""

    provides: ClassVar[frozenset[str]] = frozenset({"logps"})
    """Quantities that it can give, by their names in `upo.models.logps.AXIS`."""
    instead: ClassVar[str] = "set model.reference: FrozenReference"
    """Advice in the error about a quantity that is not provided."""
    starts_as_policy: bool = False
    """Whether all log-ratios are 0 before the first step, which is then checked."""
    dtype: str | None = None
    """dtype of its parameters and arithmetic; None: the policy's."""
    start_sha256: str | None = None
    """Of the random weights that it copies from a policy without a path: no file has them, so a checkpoint has this."""

    @abstractmethod
    def build(self, policy: Policy) -> None:
        """Makes the reference ready to compute; called once, with the policy before training."""

    def load_model(self) -> Policy | None:
        """The reference's model, e.g. to generate with, read from disk if necessary; None: there is no model."""
        return None

    @abstractmethod
    def logps(self, responses: Responses) -> Tensor:
        """Summed log-probs [N] in nats, without gradient, on the responses' device."""

    def score(self, responses: Responses, wanted: Collection[str] = ()) -> dict[str, Tensor]:
        """`logps` and the wanted quantities by name, without gradient.

        If only `logps` are needed and the batch has stored ones, these are returned.

        Args:
            wanted: names from `provides`.
        """
        if wanted:
            return self.outputs(responses, wanted)
        stored_logps = responses.reference_logps
        return {"logps": self.logps(responses) if stored_logps is None else stored_logps}

    def outputs(self, responses: Responses, names: Collection[str]) -> dict[str, Tensor]:
        """`logps` and the named quantities, computed as in `Policy.forward`; only for references that provide them."""
        raise NotImplementedError

    def stored(self, trainer: Any, round: Round) -> Callable[[Sequence[Group]], Tensor] | None:
        """A function from groups to their stored log-probs, if there are any; called when training starts."""
        return None

    def linear_head(self) -> LinearHead:
        """The output head, for divergences over the whole vocabulary; references that provide `hidden` have one."""
        raise NotImplementedError


class FrozenReference(Reference):
    """A frozen model: a copy of the policy before training, or another model."""

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
                    "FrozenReference copies the whole model, although the weights below policy.adapter do not change; "
                    "set model.reference: AdapterReference, which needs no copy, unless a callback moves the reference"
                )
            self.model = policy.frozen_copy()
            if policy.path is None and policy.model.device.type != "meta":  # that rank's weights come from another one
                self.start_sha256 = base_hash(self.model.model)
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
    """The policy before training, computed with the policy's own weights, so that no second model is in memory.

    It is the model with `policy.adapter` inactive or, if the adapter was loaded from a path, with an unchanged copy of
    that adapter.
    """

    provides = Policy.provides - DIVERGENCES
    starts_as_policy = True

    def __init__(self) -> None:
        self.model: Policy | None = None

    def build(self, policy: Policy) -> None:
        self.model = initial_policy(policy)
        start = policy.adapter and policy.adapter.path
        print_once = rank_zero_only(print)
        adapter = f"the adapter {start}" if start else "its adapter off"
        print_once(f"reference: {policy.path or 'the model'} with {adapter}")

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


class _AdapterView(Policy):  # private, so that configs do not offer it as a policy
    """A policy that shares another one's weights, with a different adapter active, or none."""

    def __init__(self, policy: Policy, adapter: str | None = None):
        """
        Args:
            policy: the holder of the weights, whose forward pass is used, with any wrapper of a strategy.
            adapter: name of the active adapter in its model; null: none.
        """
        nn.Module.__init__(self)  # not Policy's: there is nothing to build
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
    """A view of a policy with an adapter as it was before training, on the same weights.

    Raises:
        UserError: the policy has no adapter.
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
    """Moves the model to a device and returns it; sharded models stay where their strategy put them."""
    if not isinstance(model.holder, FSDPModule) and next(model.parameters()).device != device:
        model.to(device)
    return model
