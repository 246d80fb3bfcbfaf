"""Control tokens: special tokens between prompt and response that tell a model what kind of response follows.

A tokenizer remembers the one behind which its model generates, in its own configuration. So whoever loads the
checkpoint, the exported folder or a merged one stands behind that token, without being told.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEY, ALL = "generation_control", "control_tokens"
"""In tokenizer_config.json: the token behind which the model generates, and all of them."""


def add_controls(tokenizer: "PreTrainedTokenizerBase", controls: Sequence[str]) -> None:
    """Adds special tokens that the tokenizer lacks; from now on generation stands behind the first."""
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    new = [AddedToken(c, special=True, normalized=False) for c in controls if c not in known]
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer.init_kwargs |= {KEY: controls[0], ALL: list(controls)}


def control_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The token behind which the tokenizer's model generates; None for models without control tokens."""
    return tokenizer.init_kwargs.get(KEY)


def control_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The same as token ids: what generation puts behind every prompt."""
    control = control_of(tokenizer)
    return [] if control is None else [tokenizer.convert_tokens_to_ids(control)]  # type: ignore[list-item]


def never_written(tokenizer: "PreTrainedTokenizerBase", stops: Collection[int] = ()) -> list[int]:
    """Token ids that no response holds: control tokens, and those that begin or pad a text where they do not end it.

    Args:
        stops: further tokens that end a response, beside EOS.
    """
    controls = tokenizer.convert_tokens_to_ids(list(tokenizer.init_kwargs.get(ALL, [])))
    marks = {tokenizer.bos_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id, None}
    return sorted({*controls, *marks} - set(stops))  # type: ignore[misc]
