"""TRL's preference formats (https://huggingface.co/docs/trl/dataset_formats) and their relatives: pairs or labels."""

from collections.abc import Iterable, Iterator

from upo.data.example import Example
from upo.data.records import Names, example_of
from upo.data.report import SourceReport
from upo.data.row import Row
from upo.data.sources.parts import each


def trl(
    rows: Iterable[Row],
    report: SourceReport,
    *,
    prompt: str | None = None,
    chosen: str = "chosen",
    rejected: str = "rejected",
    completion: str | None = None,
    label: str | None = None,
    system: str | None = None,
    tools: str | None = None,
    chat: bool = False,
) -> Iterator[Example]:
    """{prompt, chosen, rejected}, {chosen, rejected} with the prompt in both, or {prompt, completion, label}.

    Each field is a text or a list of messages, also as JSON text. Without a prompt column the prompt is all messages
    but the last, or what both texts begin with up to an assistant's turn; without turns, what they share up to the
    last white space, if that is most of both. Also read: question, instruction (with input) or query in place of
    prompt; response, output or answer in place of completion; messages or conversations; no label (a response to
    imitate).

    Args:
        prompt: column of the prompt; null: the usual names.
        chosen: column of the better response.
        rejected: column of the worse response.
        completion: column of a single response; null: the usual names.
        label: column that is true (1) for a good response and false (0) for a bad one; null: `label` or `kto_tag`.
        system: column of the system text, the first turn of the prompt; null: `system` or `system_prompt`.
        tools: column of the functions that the model may call; null: `tools` or `functions`.
        chat: text prompts are requests of a user, which the chat template writes. Those in columns named question,
            instruction, query or input, and those with a system column, are so in any case.
    """
    names = Names(prompt, chosen, rejected, completion, label, system, tools, chat)
    return each(rows, report, lambda row: example_of(row, names))
