"""Weights of a trained model: read with a word about large ones, and known again by their content."""

import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from upo.errors import UserError, hub_errors
from upo.models import quantization
from upo.models.adapters import refuse_megatron

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

LARGE = 2**30
"""Bytes from which on reading a model is shown."""


def read_model(path: str, config: "PretrainedConfig", **options: Any) -> "PreTrainedModel":
    """A causal LM on the CPU; of a large one a progress bar, on a terminal, and a line about its memory.

    Args:
        path: hub name or local folder.
        options: of `from_pretrained`.

    Raises:
        UserError: no model there, or one with missing tensors or values that are no numbers.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    files = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    large = files >= LARGE or not Path(path).is_dir()
    (logging.enable_progress_bar if large and sys.stderr.isatty() else logging.disable_progress_bar)()
    begun = time.monotonic()
    refuse_megatron(Path(path))
    with hub_errors(path, "model"):
        model, info = AutoModelForCausalLM.from_pretrained(
            path, config=config, trust_remote_code=False, output_loading_info=True, **options
        )
    check_whole(model, info, path)
    quantization.keep_layout(model)
    if (size := model.get_memory_footprint()) >= LARGE:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
        dtype = str(model.dtype).removeprefix("torch.")
        rank_zero_only(print)(
            f"read {path}: {model.num_parameters() / 1e9:.2f} billion parameters, {dtype}, {size / 2**30:.1f} GiB, in "
            f"{time.monotonic() - begun:.0f} s; this process has held {peak:.1f} GiB at most"
        )
    return model


def check_whole(model: nn.Module, info: Mapping[str, Any], name: str) -> None:
    """Checks that a model was read as a whole, and that all of its weights are numbers.

    Args:
        info: what `from_pretrained` says with `output_loading_info`; tied tensors are not missing.
        name: of the model, for the error.

    Raises:
        UserError: tensors that its files lack, which would be random ones, or with inf or NaN in them.
    """
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{name} lacks {', '.join(f'`{x}`' for x in missing[:3])}{more}: these weights would be random; bring its "
            "missing files, or the config.json that belongs to them"
        )
    for tensor_name, x in model.named_parameters():
        if x.is_floating_point() and x.numel() and x.device.type != "meta":
            low, high = torch.aminmax(x.detach())  # one pass without a copy; NaN comes through
            if not (low.isfinite() and high.isfinite()):
                wrong = "NaN" if low.isnan() else "inf"
                raise UserError(f"{name}: `{tensor_name}` holds {wrong}; take weights that are numbers")


def new_model(config: "PretrainedConfig", dtype: torch.dtype, quantization_config: Any = None) -> "PreTrainedModel":
    """A causal LM with random weights, or with none on the meta device; 4-bit layers are for shapes only.

    Raises:
        UserError: no such model.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except ValueError as error:
        raise UserError(f"policy.config: {str(error).split('.')[0]}") from None
    if quantization_config is not None:
        quantization.replace_layers(model, quantization_config)
    return model


def tensors_hash(tensors: Iterable[tuple[str, Tensor]], *about: Any) -> str:
    """sha256 over tensors by name, with their shapes and types, and over anything else that JSON can say.

    Of what is sharded it is that of this rank's part.
    """

    def digest(item: tuple[str, Tensor]) -> str:
        name, x = item
        x = x.to_local() if isinstance(x, DTensor) else x
        raw = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        return hashlib.sha256(f"{name} {x.dtype} {tuple(x.shape)} ".encode() + hashlib.sha256(raw).digest()).hexdigest()

    with ThreadPoolExecutor() as threads:
        parts = list(threads.map(digest, sorted(tensors, key=lambda item: item[0])))
    return hashlib.sha256(json.dumps([*about, parts], sort_keys=True, default=str).encode()).hexdigest()


# ---- the model below an adapter ------------------------------------------------------------------------------------

BASE = "adapter_base"
"""Where a checkpoint of an adapter says what it was trained on."""


START_SHA256 = "reference_start"
"""Where a checkpoint says what random weights its reference copied."""


def base_hash(model: nn.Module) -> str:
    """Of a model as it was read. What 4 bits have replaced is left out: libraries may round differently."""
    return tensors_hash((name, p) for name, p in model.named_parameters() if p.is_floating_point())


def check_base(content: dict[str, Any], found: str | None, path: str | None) -> None:
    """Compares a checkpoint's adapter with the model that it is about to be put on.

    Args:
        found: hash of the model at `path`; null where there is none.

    Raises:
        UserError: it was trained on other weights.
    """
    if found is not None and content.get(BASE, found) != found:
        raise UserError(
            f"the checkpoint's adapter was trained on other weights than those at `{path}` now; bring that model back, "
            "or name its place as policy.path"
        )


def check_start(content: dict[str, Any], found: str | None) -> None:
    """Compares random weights, made again from the seed, with those that a checkpoint's reference copied.

    Raises:
        UserError: they differ, so log-ratios and KL would be measured against another model.
    """
    if found is not None and content.get(START_SHA256, found) != found:
        raise UserError(
            "the reference is a copy of the policy's random start, and that comes out otherwise here than when the "
            "checkpoint was made: go on with the same seed_everything, versions and kind of machine, or start from a "
            "model with a policy.path"
        )
