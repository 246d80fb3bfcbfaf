"""Whether a response keeps a format that no regular expression describes: JSON, a script."""

import json
import unicodedata
from collections.abc import Sequence
from typing import ClassVar, NoReturn

from upo.data.example import Prompt
from upo.data.rewards import Reward
from upo.errors import UserError, did_you_mean

SCRIPTS = (
    "ARABIC", "ARMENIAN", "BENGALI", "CJK", "CYRILLIC", "DEVANAGARI", "ETHIOPIC", "GEORGIAN", "GREEK", "GUJARATI",
    "HANGUL", "HEBREW", "HIRAGANA", "KATAKANA", "KHMER", "LATIN", "TAMIL", "TELUGU", "THAI", "TIBETAN",
)  # fmt: skip
"""First words of the Unicode names of letters."""


class ValidJSON(Reward):
    """1 where the whole response is one JSON document (RFC 8259), 0 otherwise.

    Range {0, 1}, larger is better. White space around it is fine, a code fence or a comment is not; NaN and Infinity
    are no JSON.
    """

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, keys: list[str] | None = None):
        """
        Args:
            keys: it must be an object that has at least these keys; by default any document will do.
        """
        self.keys = sorted(keys or ())

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [float(self._valid(y)) for y in responses]

    def _valid(self, text: str) -> bool:
        try:  # numbers stay text: they may be longer than Python reads
            content = json.loads(text, parse_int=str, parse_float=str, parse_constant=_no_json)
        except (ValueError, RecursionError):
            return False
        return not self.keys or (isinstance(content, dict) and set(self.keys) <= content.keys())

    def fingerprint(self) -> str:
        return f"ValidJSON 1 {self.keys}"


def _no_json(constant: str) -> NoReturn:
    raise ValueError(constant)


class Script(Reward):
    """Share of the response's letters that belong to a script: a cheap guard against switching the language.

    Range [0, 1], larger is better. A text without a letter has 0. It tells Russian from English, but not English from
    German.
    """

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, script: str = "LATIN"):
        """
        Args:
            script: LATIN, CYRILLIC, GREEK, CJK, ...: the first word of its letters' Unicode names.
        """
        self.script = script.upper()
        if self.script not in SCRIPTS:
            raise UserError(f"Script: unknown script `{script}`; {did_you_mean(self.script, SCRIPTS)}")

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [self._share(y) for y in responses]

    def _share(self, text: str) -> float:
        letters = [c for c in text if c.isalpha()]
        return sum(unicodedata.name(c, "").startswith(self.script) for c in letters) / len(letters) if letters else 0.0

    def fingerprint(self) -> str:
        return f"Script 1 {self.script} unicode={unicodedata.unidata_version}"
