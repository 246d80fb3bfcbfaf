"""Where a stored reference's model is: in memory, or only on the disk once its log-probs are known."""

from collections.abc import Callable

import torch

from upo.errors import UserError
from upo.models.loading import tensors_hash
from upo.models.policy import Policy
from upo.models.reference import placed


class InMemory:
    """A model that exists in memory alone: one from scratch, or one on the policy's own weights."""

    def __init__(self, model: Policy, shared: bool):
        """
        Args:
            model: ready to compute.
            shared: whether its weights are the policy's, which must stay where they are.
        """
        self.model, self.shared = model, shared

    def load(self, sha256: str | None) -> Policy:
        return self.model

    def release(self) -> None:
        """Leaves the accelerator."""
        if not self.shared:
            placed(self.model, torch.device("cpu"))


class OnDisk:
    """A model that takes no memory once it is released: it can be read again."""

    def __init__(self, read: Callable[[], Policy], path: str, model: Policy | None = None):
        """
        Args:
            read: reads it, ready to compute.
            path: where from, for errors.
            model: what `read` would return, where it is in memory already.
        """
        self.read, self.path, self.model = read, path, model

    def load(self, sha256: str | None) -> Policy:
        """The model, read where it is not in memory.

        Args:
            sha256: `weights_hash` of what it must be; null where that is not known yet.

        Raises:
            UserError: it is another one now.
        """
        if self.model is None:
            model = self.read()
            if sha256 is not None and weights_hash(model) != sha256:
                raise UserError(f"the reference at {self.path} has changed since the run began; bring it back")
            self.model = model
        return self.model

    def release(self) -> None:
        """Forgets the model."""
        self.model = None


def weights_hash(policy: Policy) -> str:
    """sha256 over the model's configuration and all its weights."""
    volatile = {"transformers_version", "architectures", "dtype", "torch_dtype"}
    config = {k: v for k, v in policy.model.config.to_dict().items() if k[0] != "_" and k not in volatile}
    return tensors_hash(policy.weights().items(), config)
