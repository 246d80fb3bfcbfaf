"""LLaMA-Factory's ShareGPT formats (https://github.com/hiyouga/LLaMA-Factory/tree/main/data): pairs or labels."""

from collections.abc import Iterable, Iterator

from upo.data.example import Example
from upo.data.records import Names, example_of
from upo.data.report import SourceReport
from upo.data.row import Row
from upo.data.sources.parts import each


def sharegpt(
    rows: Iterable[Row],
    report: SourceReport,
    *,
    prompt: str | None = None,
    chosen: str = "chosen",
    rejected: str = "rejected",
    label: str | None = None,
    system: str | None = None,
    tools: str | None = None,
) -> Iterator[Example]:
    """A conversation with `chosen` and `rejected` messages, or one whose last message has a `label` (or `kto_tag`).

    Messages are {"from", "value"} or {"role", "content"}, in `conversations` or `messages`; `system` and `tools` may
    stand apart. Without a label the last message is a response to imitate. Also read: LLaMA-Factory's Alpaca formats
    (instruction, input, history), and swift's `rejected_response` or `rejected_messages`.

    Args:
        prompt: column of the conversation; null: `conversations` or `messages`.
        chosen: column of the better response.
        rejected: column of the worse response.
        label: column that is true (1) for a good response and false (0) for a bad one; null: `label` or `kto_tag`.
        system: column of the system text; null: `system` or `system_prompt`.
        tools: column of the functions that the model may call; null: `tools` or `functions`.
    """
    names = Names(prompt, chosen, rejected, label=label, system=system, tools=tools, chat=True)
    return each(rows, report, lambda row: example_of(row, names))
