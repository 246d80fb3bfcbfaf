"""Prompts alone, for `python -m upo.generate` to answer."""

from collections.abc import Iterable, Iterator

from upo.data.example import Example
from upo.data.records import Names, prompt_of
from upo.data.report import SourceReport
from upo.data.row import Row
from upo.data.sources.parts import each


def prompts(
    rows: Iterable[Row],
    report: SourceReport,
    *,
    prompt: str | None = None,
    system: str | None = None,
    tools: str | None = None,
    chat: bool = False,
) -> Iterator[Example]:
    """{prompt}, {question}, {instruction, input} or {messages} that end with the user; no method can train on them.

    Args:
        prompt: column of the prompt; null: prompt, messages, question, instruction (with input) or query.
        system: column of the system text, the first turn of the prompt; null: `system` or `system_prompt`.
        tools: column of the functions that the model may call; null: `tools` or `functions`.
        chat: text prompts are requests of a user, which the chat template writes. Those in columns named question,
            instruction, query or input, and those with a system column, are so in any case.
    """
    names = Names(prompt, system=system, tools=tools, chat=chat)
    return each(rows, report, lambda row: Example(prompt_of(row, names), ()))
