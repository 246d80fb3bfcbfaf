"""Sequence classifiers and reward models of Hugging Face: loading with short errors, and what identifies them."""

import hashlib
import json
from importlib.metadata import version
from typing import Any

from upo.errors import UserError, refuse_code


def load_scorer(name: str, what: str) -> tuple[Any, Any]:
    """Sequence classifier, in eval mode, and its tokenizer.

    Args:
        name: Hugging Face name or local folder.
        what: what should be there, for error messages.

    Raises:
        UserError: nothing there, or a model whose head was never trained.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from upo.models import quantization
    from upo.models.loading import check_whole
    from upo.models.vocabulary import check_embeddings

    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        refuse_code(error, name)
        first = str(error).strip().splitlines()[0]
        raise UserError(f"no {what} at `{name}`: {first}") from error
    quantization.keep_layout(model)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])[0]
        raise UserError(f"`{name}` is no trained {what}: its weights lack `{missing}`")
    check_whole(model, info, name)
    check_embeddings(model, tokenizer, name)
    return model.eval(), tokenizer


def content_of(model: Any, tokenizer: Any) -> str:
    """Library version and a digest of weights, configuration and tokenizer: the same wherever the model lies."""
    config = {k: v for k, v in model.config.to_diff_dict().items() if k != "_name_or_path"}
    spec = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    digest = hashlib.sha256(json.dumps([config, spec], default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().float().contiguous().numpy().tobytes())
    return f"transformers={version('transformers')} max={tokenizer.model_max_length} {digest.hexdigest()}"
