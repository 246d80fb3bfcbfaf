"""Weighted sums of policies.

Rewarded soups (Rame et al., 2023, https://arxiv.org/abs/2306.04488) and LeVo's merge of preferences (Lei et al., 2025,
https://arxiv.org/abs/2506.07520): each policy is trained for one preference from the same start, and the weights
choose the trade-off afterwards.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upo.errors import UserError, hub_errors
from upo.runtime.atomic_files import written_at_once

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COSMETIC = re.compile(
    r"_.*|architectures|(torch_)?dtype|transformers_version|use_cache|.*_token_id|.*(dropout|pdrop).*"
)
"""Fields of a configuration that do not change what a model computes (dropout is always off)."""


def merge(parts: Sequence[Path], out: Path, weights: Sequence[float] | None = None, overwrite: bool = False) -> None:
    """Writes sum_i weights[i] * parts[i] as a Hugging Face folder with a model card that names the parts.

    Sums are taken in float64 and rounded once, to the dtype of the first part; of the other parts one tensor at a time
    is in memory. The parts should start from one model: weights of unrelated models cannot be averaged meaningfully.

    Args:
        parts: two or more runs, checkpoints or Hugging Face folders.
        out: where the merged model is written.
        weights: one per part, with sum 1; null: equal weights.
        overwrite: whether the contents of `out` may be replaced.

    Raises:
        UserError: unusable parts or weights, parts of different architectures, or a folder that is not empty.
    """
    import torch

    from upo.models.checkpoint import quiet
    from upo.models.export import check_free

    check_free(out, overwrite)
    weights = list(weights or [1 / max(1, len(parts))] * len(parts))
    check_weights(parts, weights)
    model, tokenizer = full_model(parts[0])
    readers = [_reader(part, model, tokenizer) for part in parts[1:]]
    with torch.no_grad():
        for name, tensor in _floats(model).items():
            total = weights[0] * tensor.double()
            for weight, part, read in zip(weights[1:], parts[1:], readers, strict=True):
                other = read(name)
                if other.shape != tensor.shape:
                    raise UserError(f"{part}: `{name}` is {list(other.shape)}, in {parts[0]} {list(tensor.shape)}")
                total += weight * other.double()
            tensor.copy_(total)
    quiet()
    with written_at_once(out) as partial:
        partial.mkdir()
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(model_card(out, parts, weights))
    print(f"merged {len(parts)} models into {out}")


def check_weights(parts: Sequence[Path], weights: Sequence[float]) -> None:
    if len(parts) < 2:
        raise UserError("name two models or more to merge")
    if len(weights) != len(parts):
        raise UserError(f"{len(parts)} models need as many --weights, not {len(weights)}")
    if not abs(sum(weights) - 1) < 1e-6:  # also NaN and infinity
        raise UserError(f"--weights must sum to 1, {' + '.join(f'{w:g}' for w in weights)} is {sum(weights):g}")


def full_model(part: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer, with an adapter merged: averages of A and of B do not multiply to the average of B A."""
    from upo.models.adapters import CONFIG
    from upo.models.checkpoint import load_model
    from upo.models.checkpoint_files import find_checkpoint, read_checkpoint
    from upo.models.merged_adapter import merged, merged_from

    if (file := find_checkpoint(part)) is not None and CONFIG in (content := read_checkpoint(file))["policy_files"]:
        return merged_from(content, file)
    model, tokenizer = load_model(part)
    return (merged(model) if hasattr(model, "peft_config") else model), tokenizer


def _floats(model: Any) -> "dict[str, Tensor]":
    """All floating-point tensors of a model by name, tied weights once."""
    saved = model.state_dict().keys()
    named = {n: x for part in (model.named_parameters(), model.named_buffers()) for n, x in part if n in saved}
    return {name: x for name, x in named.items() if x.is_floating_point()}


def _reader(part: Path, model: Any, tokenizer: Any) -> "Callable[[str], Tensor]":
    """A function from names in `model` to a part's tensors; it reads from disk where the files use the same names."""
    from safetensors import safe_open

    from upo.models.adapters import CONFIG
    from upo.models.checkpoint_files import POLICY, find_checkpoint, policy_folder, read_checkpoint

    with hub_errors(str(part), "model"):
        files = {n: f for f in sorted(part.glob("*.safetensors")) for n in safe_open(f, "pt").keys()}  # noqa: SIM118
    file = find_checkpoint(part)
    content = {"policy_files": {}} if file is None else read_checkpoint(file, mmap=True)
    if file is not None and CONFIG not in content["policy_files"]:
        with policy_folder(content) as folder:
            config, its_tokenizer = _config_and_tokenizer(folder)
        weights = content["state_dict"]
        if missing := [name for name in _floats(model) if POLICY + name not in weights]:
            raise UserError(f"{part} has no `{missing[0]}`, which the first model has; merge policies of one start")
        read = lambda name: weights[POLICY + name]  # noqa: E731
    elif _floats(model).keys() <= files.keys():
        config, its_tokenizer = _config_and_tokenizer(str(part))
        read = lambda name: safe_open(files[name], "pt").get_tensor(name)  # noqa: E731
    else:
        other, its_tokenizer = full_model(part)
        config, read = other.config, other.state_dict().__getitem__
    alike(part, config, model.config)
    if its_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{part} has another tokenizer than the first model; merge policies that share one")
    return read


def _config_and_tokenizer(folder: str) -> "tuple[Any, PreTrainedTokenizerBase]":
    from transformers import AutoConfig, AutoTokenizer

    with hub_errors(folder, "model"):
        return (
            AutoConfig.from_pretrained(folder, trust_remote_code=False),
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        )


def alike(part: Path, config: Any, first: Any) -> None:
    """Raises a `UserError` if two configurations describe different computations."""
    first_fields, fields = first.to_dict(), config.to_dict()
    names = [n for n in sorted(first_fields.keys() | fields.keys()) if not COSMETIC.fullmatch(n)]
    if different := [n for n in names if first_fields.get(n) != fields.get(n)]:
        what = ", ".join(f"{n} ({fields.get(n)}, not {first_fields.get(n)})" for n in different[:3])
        raise UserError(
            f"{part} has another architecture than the first model: {what}; merge policies that started from one model"
        )


def model_card(folder: Path, parts: Sequence[Path], weights: Sequence[float]) -> str:
    """README.md of a merged model."""
    rows = "\n".join(f"| {part} | {weight:.6g} |" for part, weight in zip(parts, weights, strict=True))
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [upo, merge]\n---\n\n"
        f"# {folder.resolve().name}\n\n"
        "A causal language model whose weights are the weighted sum of those of the models below, by "
        f"[upo](https://arxiv.org/abs/2405.17956).\n\n| model | weight |\n|---|---|\n{rows}\n"
    )
