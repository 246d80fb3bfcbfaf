"""Reference log-probs of a whole data set: computed once before training, kept on disk, shared by all runs.

At first a stored reference has its model (`source`). When training starts, `Precompute` computes the missing log-probs
and writes them to the store; then the model is released, and log-probs are looked up (`lookup`). Evaluations load the
model again.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from attrs import frozen
from torch import Tensor

from upo.data.layout import Responses
from upo.data.rounds import Round
from upo.data.units import Group
from upo.errors import UserError
from upo.models.policy import Policy
from upo.models.precompute import Precompute
from upo.models.reference import Reference, initial_policy, is_start, placed
from upo.models.reference_source import InMemory, OnDisk, weights_hash
from upo.models.store import LogpsStore

LAYOUT_VERSION = 1
"""Part of every key; to be raised when a change of the code changes the log-probs of the same weights and tokens."""

ROUGH = (2e-2, 0.5)
"""Tolerance (relative, nats) of bfloat16, float16 and TensorFloat32; measured: 0.5 % between layouts, 1 % between
kernels."""


class StoredReference(Reference):
    """A frozen model whose log-probs are computed before training, kept on disk, and never computed again.

    They cover training and validation data, including the mismatched responses of KTO. All runs with the same reference
    and data share them. Not for a reference that moves, nor for responses generated during training. Best in float32:
    in bfloat16 a FrozenReference makes the same rounding errors as the policy, which cancel in log-ratios.
    """

    def __init__(
        self,
        path: str | None = None,
        folder: str = "~/.cache/upo/reference",
        dtype: Literal["float32", "bfloat16", "float64"] | None = None,
    ):
        """
        Args:
            path: hub name or local folder of another model with the same tokenizer; null is the policy before training.
            folder: where log-probs are kept; runs may share it, also at the same time.
            dtype: of the reference's parameters and arithmetic; null computes as the policy does.
        """
        self.path, self.dtype = path, dtype
        self.folder = Path(folder).expanduser()
        self.starts_as_policy = path is None and dtype is None
        self.source: InMemory | OnDisk | None = None
        """The model; set by `build`."""
        self.weights_sha256: str | None = None
        """Hash of the model's weights. A strategy that shards them sets it before; otherwise `stored` does."""
        self.lookup: StoredLogps | None = None
        """All log-probs; set by `stored`, after which the model computes none."""

    # ---- the model -------------------------------------------------------------------------------------------

    def build(self, policy: Policy) -> None:
        if self.path is not None:
            self.source = self._on_disk(policy.like(self.path, self.dtype))
            self.starts_as_policy = is_start(policy, self.path, self.dtype)
        elif policy.adapter is not None:
            shared = self.dtype is None
            self.source = InMemory(self._converted(initial_policy(policy if shared else policy.frozen_copy())), shared)
        elif policy.path is not None:
            self.source = self._on_disk(policy.like(policy.path), self._converted(policy.frozen_copy()))
        else:
            self.source = InMemory(self._converted(policy.frozen_copy()), shared=False)

    def _on_disk(self, unread: Policy, model: Policy | None = None) -> OnDisk:
        """
        Args:
            unread: a policy with path, tokenizer and template of the model, which is never built itself.
            model: the model, if it is in memory; null reads it now.
        """

        def read() -> Policy:
            policy = unread.like(str(unread.path))
            policy.build()
            return self._converted(policy.requires_grad_(False).eval())

        return OnDisk(read, str(unread.path), read() if model is None else model)

    def _converted(self, model: Policy) -> Policy:
        return model if self.dtype is None else model.to(getattr(torch, self.dtype))

    def load_model(self) -> Policy:
        assert self.source is not None, "build() comes first"
        return self.source.load(self.weights_sha256)

    @torch.no_grad()
    def logps(self, responses: Responses) -> Tensor:
        if self.lookup is not None:
            raise UserError(
                "StoredReference has log-probs of the data set only, and these responses were made during training; "
                "set model.reference: FrozenReference"
            )
        return placed(self.load_model(), responses.input_ids.device)(responses)["logps"]

    # ---- the store -------------------------------------------------------------------------------------------

    def stored(self, trainer: Any, round: Round) -> "StoredLogps":
        device = trainer.strategy.root_device
        model = placed(self.load_model(), device)
        self.weights_sha256 = self.weights_sha256 or weights_hash(model)
        with torch.no_grad(), self._arithmetic(trainer):
            compute = arithmetic(model, device, None if self.dtype else getattr(trainer.strategy, "param_dtype", None))
            fingerprint = json.dumps([self.weights_sha256, compute, LAYOUT_VERSION])
            name = f"{model.model_config.model_type}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}"
            store = LogpsStore(self.folder / name, fingerprint)
            values = Precompute(model, store, trainer, round).values(tolerance(compute))
        self.lookup = StoredLogps(store, values, torch.float64 if compute.startswith("float64") else torch.float32)
        if tolerance(compute) == ROUGH:
            self.starts_as_policy = False
            warnings.warn(
                f"stored reference log-probs in {compute} are off by up to 1 % of a sum; a FrozenReference makes the "
                "policy's own error, which cancels in log-ratios"
            )
        assert self.source is not None
        self.source.release()
        return self.lookup

    def _arithmetic(self, trainer: pl.Trainer) -> AbstractContextManager:
        return trainer.precision_plugin.forward_context() if self.dtype is None else nullcontext()


@frozen
class StoredLogps:
    """Looks up the log-probs of groups."""

    store: LogpsStore
    values: Mapping[bytes, float]
    dtype: torch.dtype
    """Of the result, float32 at least: a sum of -600 in bfloat16 has a step of 4 nats."""

    def __call__(self, groups: Sequence[Group]) -> Tensor:
        """Log-probs [responses] in the order of the groups, in nats."""
        try:
            logps = [self.values[self.store.key(u.prompt, r)] for u in groups for r in u.responses]
        except KeyError:
            raise UserError(
                "a batch holds a response that is not in the reference store: it was not in the data when training "
                "began; set model.reference: FrozenReference"
            ) from None
        return torch.tensor(logps, dtype=self.dtype)


def arithmetic(model: Policy, device: torch.device, layers: torch.dtype | None = None) -> str:
    """The arithmetic of log-probs as a string: dtype, type of device, precision of matrix products.

    Args:
        layers: dtype in which a strategy makes layers compute; null: that of the weights.
    """
    weights = layers or next(model.parameters()).dtype
    compute = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else weights
    return f"{str(compute).removeprefix('torch.')} {device.type} {torch.get_float32_matmul_precision()}"


def tolerance(compute: str) -> tuple[float, float]:
    """How much log-probs may differ between batches, layouts and machines in this arithmetic: relative, and in nats."""
    dtype, _, matmul = compute.split()
    return {"float64": (1e-10, 1e-10), "float32": (1e-6, 1e-4)}.get(dtype, ROUGH) if matmul == "highest" else ROUGH
