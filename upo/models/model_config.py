"""A transformers config as policies need it: read or made, with dropout off."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upo.errors import UserError, hub_errors

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def read_config(path: str) -> "PretrainedConfig":
    """The config of a trained model.

    Args:
        path: hub name or local folder.

    Raises:
        UserError: no model there.
    """
    from transformers import AutoConfig

    with hub_errors(path, "model"):
        return AutoConfig.from_pretrained(path, trust_remote_code=False)


def new_config(fields: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> "PretrainedConfig":
    """The config of a model from scratch, whose vocabulary and special tokens are the tokenizer's.

    Args:
        fields: of the config, `model_type` among them; they come before what the tokenizer says.

    Raises:
        UserError: an unknown `model_type`, or values that it does not take.
    """
    from transformers import AutoConfig

    fields = {"vocab_size": len(tokenizer)} | fields
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        fields.setdefault(name, getattr(tokenizer, name))
    try:
        return AutoConfig.for_model(**fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"policy.config: {error}") from None


def without_dropout(config: "PretrainedConfig") -> "PretrainedConfig":
    """The same config, changed in place: with dropout, log-ratios would be noise."""
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def folder_files(*parts: Any) -> dict[str, bytes]:
    """What configurations and a tokenizer write into a folder, by file name; None writes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            if part is not None:
                part.save_pretrained(folder)
        return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.is_file()}
