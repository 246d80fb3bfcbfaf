"""Chat templates: those that the package brings (a .jinja file each), their variables, and how they are applied.

A tokenizer remembers in its own configuration with which variables its model was trained. So whoever loads a checkpoint
or an exported folder writes conversations as training did, without being told.
"""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from string import ascii_letters
from typing import TYPE_CHECKING, Any

from upo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPTIONS, PREFORMATTED = "template_options", "preformatted"
"""In tokenizer_config.json: variables of the chat template; whether texts spell control tokens."""
DATE = "strftime_now"
"""What templates ask for today's date, and the option that gives it."""
FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{%- set read = namespace(text=format) -%}"
    "{%- for code, text in fixed_date.items() -%}{%- set read.text = read.text | replace(code, text) -%}{%- endfor -%}"
    "{{- read.text -}}{%- endmacro %}\n"
)
"""Written before a template, it gives every day the same date."""


class Unrenderable(UserError):
    """A prompt or response that cannot be written as the model reads it."""

    def __init__(self, reason: str):
        super().__init__(f"{reason}; set policy.chat_template to a template that fits the data, or change the data")
        self.reason = reason
        """Under which data reports count it."""


def with_template(
    tokenizer: "PreTrainedTokenizerBase",
    chat_template: str | None,
    template_options: Mapping[str, Any] | None = None,
    preformatted: bool | None = None,
) -> "PreTrainedTokenizerBase":
    """The tokenizer with another chat template, or other variables for it; null keeps what it has.

    Args:
        chat_template: one of this folder by its name, or a file.
        template_options: variables of the template; `strftime_now` is the date, YYYY-MM-DD, that it writes as today's.
        preformatted: whether special tokens that plain texts spell out are control tokens.

    Raises:
        UserError: neither a template of that name nor such a file, or an option that the template does not read.
    """
    if chat_template is not None:
        known = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.jinja"))}
        file = known.get(chat_template, Path(chat_template))
        if not file.is_file():
            names = " or ".join(known)
            raise UserError(f"policy.chat_template: no file `{chat_template}`; name a .jinja file, or {names}")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    if template_options:
        _check(tokenizer, template_options)
        plain = {name: str(x) if name == DATE else x for name, x in template_options.items()}
        tokenizer.init_kwargs[OPTIONS] = options_of(tokenizer) | plain
    if preformatted is not None:
        tokenizer.init_kwargs.pop(PREFORMATTED, None)
        tokenizer.init_kwargs |= {PREFORMATTED: True} if preformatted else {}
    return tokenizer


def options_of(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Variables of the chat template that the tokenizer remembers."""
    return dict(tokenizer.init_kwargs.get(OPTIONS) or {})


def options_in(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The same, of a tokenizer that lies in files by their names."""
    return json.loads(files.get("tokenizer_config.json", b"{}")).get(OPTIONS) or {}


def inherit_options(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any]) -> None:
    """Gives a tokenizer those variables that it has no value for; templates leave aside what they do not read."""
    if whole := {**options, **options_of(tokenizer)}:
        tokenizer.init_kwargs[OPTIONS] = whole


def keep_date(tokenizer: "PreTrainedTokenizerBase", day: str) -> None:
    """From now on a template that writes today's date writes this one, YYYY-MM-DD, unless a date is set already."""
    if DATE in template_text(tokenizer):
        inherit_options(tokenizer, {DATE: day})


def apply_template(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]], **how: Any) -> str:
    """A conversation as its chat template writes it, with the variables that the tokenizer remembers.

    Args:
        messages: role, content, and whatever else a template reads; `tools` of any message are those of the
            conversation.
        how: `add_generation_prompt` or `continue_final_message`.

    Raises:
        Unrenderable: the template refuses the conversation or fails on it.
    """
    tools = [tool for message in messages for tool in message.get("tools") or ()] or None
    turns = [{key: x for key, x in message.items() if key != "tools"} for message in messages]
    options = options_of(tokenizer)
    try:
        template = tokenizer.get_chat_template(None, tools)
        if DATE in options:
            options["fixed_date"] = _codes(options.pop(DATE))
            template = FIXED_DATE + template
        return tokenizer.apply_chat_template(  # type: ignore[return-value]
            turns, tools=tools, chat_template=template, tokenize=False, **how, **options
        )
    except Exception as error:  # a template can fail as any program can; its own words say most
        words = " ".join(str(error).split()) or type(error).__name__
        raise Unrenderable(f"chat template refuses: {words[:160]}") from None


@cache
def _codes(day: str) -> dict[str, str]:
    """What `strftime` writes for each of its codes on a day."""
    codes = [f"{sign}{letter}" for letter in ascii_letters for sign in ("%-", "%")]
    written = {code: date.fromisoformat(day).strftime(code) for code in codes}
    known = {code: text for code, text in written.items() if text != code}
    return {"%%": "\0", **known, "\0": "%"}  # in this order: what is left of `%%` is no code


def template_text(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The chat template, or all of them where a tokenizer has several; empty where it has none."""
    template = tokenizer.chat_template or ""
    return template if isinstance(template, str) else "\n".join(template.values())


def _check(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any]) -> None:
    ours = {"messages", *inspect.signature(type(tokenizer).apply_chat_template).parameters}
    for name, value in options.items():
        if name in ours or not re.search(rf"\b{re.escape(name)}\b", template_text(tokenizer)):
            raise UserError(f"policy.template_options: the chat template reads no variable `{name}`; leave it out")
        if name == DATE:
            try:
                date.fromisoformat(str(value))
            except ValueError:
                raise UserError(f"policy.template_options.{DATE}: `{value}` is no date such as 2026-11-30") from None
