"""Whether models and tokenizers belong together: log-probs under another vocabulary have no meaning."""

import warnings
from typing import TYPE_CHECKING

from upo.data.tokenize import load_tokenizer
from upo.errors import UserError
from upo.models.model_config import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_embeddings(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Raises a `UserError` where a tokenizer has more tokens than a model has embeddings.

    Args:
        name: of both, for the error.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer {name} has {len(tokenizer)} tokens, the model only {rows} embeddings; give a tokenizer "
            "and a model that belong together"
        )


def check_shared(tokenizer: "PreTrainedTokenizerBase", path: str, vocabulary: int) -> None:
    """Checks that another model reads a policy's tokens as the policy does.

    Args:
        tokenizer: of the policy.
        path: hub name or folder of the other model; one without a tokenizer must have as many tokens as the policy.
        vocabulary: number of the policy's tokens, by its config.

    Raises:
        UserError: tokens of ordinary text have other ids there; of added tokens, which may be unused, it is a warning.
    """
    remedy = "its log-probs would be those of other texts; name a model with the policy's tokenizer"
    try:
        other = load_tokenizer(path)
    except UserError:
        if (number := read_config(path).get_text_config().vocab_size) != vocabulary:
            raise UserError(f"{path} has {number} tokens, the policy {vocabulary}: {remedy}") from None
        return
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    added = tokenizer.get_added_vocab().keys() | other.get_added_vocab().keys()
    wrong = [token for token, i in sorted(ours.items()) if theirs.get(token) != i]
    missing = [token for token in theirs.keys() - ours.keys() if token not in added]
    if ordinary := [token for token in wrong if token not in added] or sorted(missing):
        token = ordinary[0]
        raise UserError(
            f"{path} has another vocabulary than the policy: `{token}` is {theirs.get(token, 'unknown')} there, "
            f"{ours.get(token, 'unknown')} for the policy. So {remedy}"
        )
    if wrong:
        warnings.warn(f"{path} does not know these tokens of the policy, or has others in their place: {wrong[:5]}")
