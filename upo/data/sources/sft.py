"""Responses to imitate, without preference or label: the usual formats of supervised fine-tuning."""

from collections.abc import Iterable, Iterator

from upo.data.example import Example
from upo.data.records import Names, example_of
from upo.data.report import SourceReport
from upo.data.row import Row
from upo.data.sources.parts import each


def sft(
    rows: Iterable[Row],
    report: SourceReport,
    *,
    prompt: str | None = None,
    completion: str | None = None,
    system: str | None = None,
    tools: str | None = None,
    chat: bool = False,
) -> Iterator[Example]:
    """{messages} or {conversations} that end with the response, {prompt, completion}, or {instruction, input, output}.

    Args:
        prompt: column of the prompt; null: prompt, question, instruction (with input) or query.
        completion: column of the response; null: completion, response, output or answer.
        system: column of the system text, the first turn of the prompt; null: `system` or `system_prompt`.
        tools: column of the functions that the model may call; null: `tools` or `functions`.
        chat: text prompts are requests of a user, which the chat template writes. Those in columns named question,
            instruction, query or input, and those with a system column, are so in any case.
    """
    names = Names(prompt, completion=completion, system=system, tools=tools, chat=chat)
    return each(rows, report, lambda row: example_of(row, names))
