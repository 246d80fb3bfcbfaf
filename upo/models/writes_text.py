"""The text side of a policy: its tokenizer, how it writes conversations, and the control tokens of methods."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from upo.data.control import add_controls
from upo.data.templates import with_template
from upo.data.tokenize import load_tokenizer
from upo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class WritesText:
    """A policy's tokenizer, which is read when it is first asked for."""

    tokenizer_path: str
    text: Mapping[str, Any]
    """How text is written, as `with_template` takes it: `chat_template`, `template_options` and `preformatted`."""
    controls: tuple[str, ...] = ()
    """Tokens that a method puts between prompt and response; generation stands behind the first one."""

    def take_controls(self, tokens: Sequence[str]) -> None:
        """Adds control tokens, for tokenizer and model to know; a `UserError` where the tokenizer was read before."""
        if new := [token for token in tokens if token not in self.controls]:
            if "tokenizer" in vars(self) or hasattr(self, "model"):
                raise UserError(
                    f"{' and '.join(new)} come too late for a policy whose tokenizer is in use; make a new policy"
                )
            self.controls = (*tokens, *(token for token in self.controls if token not in tokens))

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, with the method's control tokens."""
        tokenizer = with_template(load_tokenizer(self.tokenizer_path), **self.text)
        if self.controls:
            add_controls(tokenizer, self.controls)
        return tokenizer
