"""The model of a stored reference: kept in memory, or read again from disk when it is needed."""

from collections.abc import Callable

import torch

from upo.errors import UserError
from upo.models.loading import tensors_hash
from upo.models.policy import Policy
from upo.models.reference import placed


class InMemory:
    """A model that exists in memory only: one from scratch, or one that shares the policy's weights."""

    def __init__(self, model: Policy, shared: bool):
        """
        Args:
            model: a built model.
            shared: whether its weights are the policy's and must stay on their device.
        """
        self.model, self.shared = model, shared

    def load(self, sha256: str | None) -> Policy:
        return self.model

    def release(self) -> None:
        """Moves the model off the accelerator, if it does not share the policy's weights."""
        if not self.shared:
            placed(self.model, torch.device("cpu"))


class OnDisk:
    """A model on disk: it takes no memory after `release`, and `load` reads it again."""

    def __init__(self, read: Callable[[], Policy], path: str, model: Policy | None = None):
        """
        Args:
            read: reads and builds the model.
            path: hub name or folder of the model, for errors.
            model: the model, if it is in memory already.
        """
        self.read, self.path = read, path
        self.model = model

    def load(self, sha256: str | None) -> Policy:
        """The model, read from disk if it is not in memory.

        Args:
            sha256: `weights_hash` that a model read from disk must have; null: not checked.

        Raises:
            UserError: the model on disk has another hash.
        """
        if self.model is None:
            model = self.read()
            if sha256 is not None and weights_hash(model) != sha256:
                raise UserError(f"the reference at {self.path} has changed since the run began; restore it")
            self.model = model
        return self.model

    def release(self) -> None:
        """Frees the model's memory."""
        self.model = None


def weights_hash(policy: Policy) -> str:
    """SHA-256, as hex digits, of the model's configuration and all its weights."""
    volatile = {"transformers_version", "architectures", "dtype", "torch_dtype"}
    config = {k: v for k, v in policy.model.config.to_dict().items() if k[0] != "_" and k not in volatile}
    return tensors_hash(policy.weights().items(), config)
