"""Reference log-probs of a whole data set: computed once before training, kept on disk, shared by all runs."""

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
from upo.models.loading import tensors_hash
from upo.models.policy import Policy
from upo.models.precompute import Precompute
from upo.models.reference import Reference, initial_policy, placed
from upo.models.store import LogpsStore

LAYOUT_VERSION = 1
"""Part of every key: raise it when the same weights and tokens get other log-probs than before."""

ROUGH = (2e-2, 0.5)
"""Tolerance of bfloat16, float16 and TensorFloat32: measured were 0.5 % between layouts, 1 % between kernels."""


class StoredReference(Reference):
    """A frozen model whose log-probs are computed before training, kept on disk, and never computed again.

    For training and validation data, the borrowed responses of KTO's z0 included. All runs with the same reference and
    data share them. Not for a reference that moves, nor for responses that are written during training. Best in
    float32: in bfloat16 a live reference makes the same rounding errors as the policy, and they cancel.
    """

    def __init__(
        self,
        path: str | None = None,
        folder: str = "~/.cache/upo/reference",
        dtype: Literal["float32", "bfloat16", "float64"] | None = None,
    ):
        """
        Args:
            path: hub name or local folder of another model with the same tokenizer; null is the policy as it starts.
            folder: where log-probs are kept, by content: runs may share it, also at the same time.
            dtype: of the reference's parameters and arithmetic; null computes as the policy does.
        """
        self.path, self.folder, self.dtype = path, Path(folder).expanduser(), dtype
        self.starts_as_policy = path is None and dtype is None
        self._model: Policy | None = None
        self._again: Policy | None = None
        self._shares = False
        """Whether the model is the policy's own, with its adapter off."""
        self.weights: str | None = None
        """Hash of the weights, for a strategy to set that is going to shard them."""
        self._complete = False

    # ---- the model -------------------------------------------------------------------------------------------

    def build(self, policy: Policy) -> None:
        if policy.adapter is not None and self.path is None:
            self._shares = self.dtype is None
            self._model = self._converted(initial_policy(policy if self._shares else policy.frozen_copy()))
            return
        if (path := self.path or policy.path) is not None:
            self._again = policy.like(path, self.dtype if self.path else None)
        self._model = self._converted(policy.frozen_copy()) if self.path is None else self._load()

    def _load(self) -> Policy:
        assert self._again is not None
        self._again.build()
        return self._converted(self._again.requires_grad_(False).eval())

    def _converted(self, model: Policy) -> Policy:
        return model if self.dtype is None else model.to(getattr(torch, self.dtype))

    @property
    def model(self) -> Policy | None:
        """The reference itself, e.g. to generate with; read again where it was let go."""
        if self._model is None and self._again is not None:
            self._model = self._load()
            if self.weights is not None and weights_hash(self._model) != self.weights:
                raise UserError(f"the reference at {self._again.path} has changed since the run began; bring it back")
        return self._model

    def _let_go(self) -> None:
        """Frees the model's memory; a random one cannot be read again and only leaves the accelerator."""
        if self._again is None:
            assert self._model is not None
            if not self._shares:
                placed(self._model, torch.device("cpu"))
            return
        if hasattr(self._again, "model"):
            del self._again.model
        self._model = None

    @torch.no_grad()
    def logps(self, responses: Responses) -> Tensor:
        if self._complete:
            raise UserError(
                "StoredReference knows only responses of the data set, and these were made during training; "
                "set model.reference: FrozenReference"
            )
        assert self.model is not None, "build() comes first"
        return placed(self.model, responses.input_ids.device)(responses)["logps"]

    # ---- the store -------------------------------------------------------------------------------------------

    def stored(self, trainer: Any, round: Round) -> "StoredLogps":
        device = trainer.strategy.root_device
        assert self.model is not None, "build() comes first"
        self.weights = self.weights or weights_hash(self.model)
        model = placed(self.model, device)
        with torch.no_grad(), self._arithmetic(trainer):
            compute = arithmetic(model, device, None if self.dtype else getattr(trainer.strategy, "param_dtype", None))
            fingerprint = json.dumps([self.weights, compute, LAYOUT_VERSION])
            name = f"{model.model_config.model_type}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}"
            store = LogpsStore(self.folder / name, fingerprint)
            values = Precompute(model, store, trainer, round).values(tolerance(compute))
        self._complete = True
        if tolerance(compute) == ROUGH:
            self.starts_as_policy = False
            warnings.warn(
                f"stored reference log-probs in {compute} are off by up to 1 % of a sum; a FrozenReference makes the "
                "policy's own error, which cancels in log-ratios"
            )
        self._let_go()
        return StoredLogps(store, values, torch.float64 if compute.startswith("float64") else torch.float32)

    def _arithmetic(self, trainer: pl.Trainer) -> AbstractContextManager:
        return trainer.precision_plugin.forward_context() if self.dtype is None else nullcontext()


@frozen
class StoredLogps:
    """Finds the log-probs of groups."""

    store: LogpsStore
    values: Mapping[bytes, float]
    dtype: torch.dtype
    """float32 at least: a sum of -600 in bfloat16 has a step of 4 nats."""

    def __call__(self, groups: Sequence[Group]) -> Tensor:
        """One a response, in the order of the groups."""
        try:
            found = [self.values[self.store.key(u.prompt, r)] for u in groups for r in u.responses]
        except KeyError:
            raise UserError(
                "a batch holds a response that is not in the reference store: it was not in the data when training "
                "began; set model.reference: FrozenReference"
            ) from None
        return torch.tensor(found, dtype=self.dtype)


def arithmetic(model: Policy, device: torch.device, layers: torch.dtype | None = None) -> str:
    """In what log-probs are computed here: type, kind of device, precision of matrix products.

    Args:
        layers: what a strategy makes layers compute in, if not in the type of their weights.
    """
    weights = layers or next(model.parameters()).dtype
    compute = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else weights
    return f"{str(compute).removeprefix('torch.')} {device.type} {torch.get_float32_matmul_precision()}"


def tolerance(compute: str) -> tuple[float, float]:
    """How far sums may differ between batches, layouts and machines in this arithmetic: relative, and in nats."""
    dtype, _, matmul = compute.split()
    return {"float64": (1e-10, 1e-10), "float32": (1e-6, 1e-4)}.get(dtype, ROUGH) if matmul == "highest" else ROUGH


def weights_hash(policy: Policy) -> str:
    """sha256 over the model's configuration and all its weights."""
    volatile = {"transformers_version", "architectures", "dtype", "torch_dtype"}
    config = {k: v for k, v in policy.model.config.to_dict().items() if k[0] != "_" and k not in volatile}
    return tensors_hash(policy.weights().items(), config)
