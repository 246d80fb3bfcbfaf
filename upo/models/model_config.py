"""transformers configs of policies: read or made from scratch, with dropout off."""

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upo.data.chat_format import ChatFormat
from upo.errors import UserError, hub_errors

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase


def read_config(path: str) -> "PretrainedConfig":
    """The config of a trained model.

    Args:
        path: hub name or local folder.

    Raises:
        UserError: there is no model.
    """
    from transformers import AutoConfig

    with hub_errors(path, "model"):
        return AutoConfig.from_pretrained(path, trust_remote_code=False)


def new_config(fields: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> "PretrainedConfig":
    """The config of a model from scratch, with the tokenizer's vocabulary size and special tokens.

    Args:
        fields: of the config, with `model_type`; they take precedence over the tokenizer's values.

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
    """Sets all dropout probabilities of a config to 0, in place: dropout would make log-ratios noisy."""
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def stopping(habits: "GenerationConfig", tokenizer: "PreTrainedTokenizerBase") -> "GenerationConfig":
    """A generation config that also stops at what closes a turn in the chat template, as policies learn to."""
    known = habits.eos_token_id
    stops = known if isinstance(known, list) else [] if known is None else [known]
    if not (missing := sorted(ChatFormat(tokenizer).stops - {*stops, None})):
        return habits
    changed = copy.deepcopy(habits)
    changed.eos_token_id = [*stops, *missing]
    return changed


def folder_files(*parts: Any) -> dict[str, bytes]:
    """The files that configurations and a tokenizer write into a folder, by name; None parts are skipped."""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            if part is not None:
                part.save_pretrained(folder)
        return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.is_file()}
