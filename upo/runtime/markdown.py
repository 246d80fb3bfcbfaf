"""Texts in Markdown that anybody may have written: shown as they are, without structure or links of their own."""

import html
import re

STRUCTURE = re.compile(r"[\\\[\]|]")
ADDRESS = re.compile(r"(?<=:)//|(?<=\bwww)\.", re.IGNORECASE)
"""Where GitHub's Markdown makes a link of plain text."""


def cell(text: str) -> str:
    """A text within a table's cell, or in a line."""
    text = html.escape(STRUCTURE.sub(r"\\\g<0>", text), quote=False)
    text = ADDRESS.sub(lambda found: "".join(f"\\{x}" for x in found[0]), text)
    return text.replace("\r", "").replace("\n", "<br>")


def fenced(text: str, language: str = "") -> str:
    """A text as code; the fence is longer than any that it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
