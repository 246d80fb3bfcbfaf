"""Chat templates for models whose tokenizers bring none: a .jinja file each."""

from pathlib import Path
from typing import TYPE_CHECKING

from upo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def with_template(tokenizer: "PreTrainedTokenizerBase", chat_template: str | None) -> "PreTrainedTokenizerBase":
    """The tokenizer with another chat template: one of this folder by its name, or a file's; null keeps its own.

    Raises:
        UserError: neither a template of that name nor such a file.
    """
    if chat_template is not None:
        known = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.jinja"))}
        file = known.get(chat_template, Path(chat_template))
        if not file.is_file():
            names = " or ".join(known)
            raise UserError(f"policy.chat_template: no file `{chat_template}`; name a .jinja file, or {names}")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    return tokenizer
