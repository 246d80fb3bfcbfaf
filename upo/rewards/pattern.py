"""Whether a response holds something that a regular expression describes."""

import re
from collections.abc import Sequence
from typing import ClassVar

from upo.data.example import Prompt
from upo.data.rewards import Reward
from upo.errors import UserError


class Pattern(Reward):
    """1 where the regular expression is absent from the response (or present, as `wanted` says), 0 otherwise.

    For a rule that can be read off the text: no quoted speech is `pattern: '["“”]'`. Range {0, 1}.
    """

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, pattern: str, wanted: bool = False):
        """
        Args:
            pattern: Python regular expression, searched anywhere in the response; `(?i)` at its start ignores
                case.
            wanted: reward its presence instead of its absence.
        """
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise UserError(f"Pattern: `{pattern}` is no regular expression: {error}") from None
        self.wanted = wanted

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [float(bool(self.pattern.search(y)) == self.wanted) for y in responses]

    def fingerprint(self) -> str:
        return f"Pattern 1 {self.pattern.pattern!r} wanted={self.wanted}"
