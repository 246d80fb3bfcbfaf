"""transformers configs of policies: read or made from scratch, with dropout off."""

import copy
import inspect
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upo.data.chat_format import ChatFormat
from upo.errors import UserError, hub_errors, nearest

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase


FURTHER = {"torch_dtype", "rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings"}
"""Fields of many configs that transformers moves elsewhere when it reads them."""


def read_config(path: str) -> "PretrainedConfig":
    """The config of a trained model.

    Args:
        path: hub name or local folder.

    Raises:
        UserError: there is no model, or none that a policy can be.
    """
    from transformers import AutoConfig

    with hub_errors(path, "model"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    check_causal(config, path)
    return config


def check_causal(config: "PretrainedConfig", name: str) -> None:
    """Raises a `UserError` where a config describes something else than a causal language model.

    Args:
        name: of the model, for the error.
    """
    from transformers import AutoModelForCausalLM

    what = None
    if config.is_encoder_decoder:
        what = "an encoder-decoder model: it reads prompts with another half than it writes responses with"
    elif type(config) not in AutoModelForCausalLM._model_mapping:
        what = "no language model that transformers knows as a causal one"
    if what is not None:
        raise UserError(f"{name}: {config.model_type} is {what}; take a causal (decoder-only) language model")


def new_config(fields: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> "PretrainedConfig":
    """The config of a model from scratch, with the tokenizer's vocabulary size and special tokens.

    Args:
        fields: of the config, with `model_type`; they take precedence over the tokenizer's values.

    Raises:
        UserError: an unknown `model_type`, fields that it does not have, or values that it does not take.
    """
    from transformers import AutoConfig

    ours = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ours["vocab_size"] = len(tokenizer)
    if "text_config" in fields:
        fields = fields | {"text_config": ours | dict(fields["text_config"])}
    else:
        fields = ours | fields
    try:
        config = AutoConfig.for_model(**fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"policy.config: {error}") from None
    check_causal(config, "policy.config")
    if unknown := sorted(fields.keys() - known_fields(config)):
        near = nearest(unknown[0], known_fields(config))
        hint = f"did you mean `{near}`?" if near else "leave it out"
        raise UserError(f"policy.config: {config.model_type} has no `{unknown[0]}`, which would do nothing; {hint}")
    return config


def known_fields(config: "PretrainedConfig") -> set[str]:
    """What a model's config can hold; transformers keeps any other field, and does nothing with it."""
    read = {name for cls in type(config).__mro__ for name in inspect.signature(cls.__init__).parameters}
    return {*read, *type(config)().to_dict(), *config.attribute_map, *FURTHER}


def without_dropout(config: "PretrainedConfig") -> "PretrainedConfig":
    """Sets all probabilities with which training drops values or layers to 0, in place: log-ratios would be noisy.

    Configs within it (of the language model in a multi-modal one) are set as well.
    """
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    for name in config.sub_configs:
        if (inner := getattr(config, name, None)) is not None:
            without_dropout(inner)
    return config


def context_of(config: "PretrainedConfig") -> int | None:
    """The longest sequence that a model has positions for, in tokens; None: unknown."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


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
