"""How a check is printed."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from upo.check.plan import FREE_GIB, Memory
from upo.data.layout import Responses
from upo.data.view import colour, places, scored, token_text
from upo.runtime.disk import size

SHOWN = 60
"""Tokens of a prompt that are shown, the last ones; twice as many of a response, the first ones."""


def console() -> Console:
    """A line of the data report is longer than the 80 columns of a pipe."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=120)


def duration(hours: float) -> str:
    """Hours, or minutes where they are few."""
    return f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:.1f} minutes"


def rows(title: str, values: Mapping[str, str]) -> Table:
    """Names and what there is to say of each."""
    table = Table(title=title, show_header=False, title_justify="left", min_width=60)
    for name, value in values.items():
        table.add_row(Text(name), Text(value))
    return table


def memory_table(memory: Memory, where: str) -> Table:
    table = Table("part", "bytes", title=f"Memory a device, {where}", title_justify="left", min_width=60)
    for name, number in memory.parts.items():
        table.add_row(name, size(number) if number else "none", style="" if number else "dim")
    table.add_section()
    table.add_row("peak", size(memory.peak), style="bold")
    return table


def verdict(peak: float, name: str, gib: float) -> str:
    """Whether a peak in bytes fits a GPU of so many GiB."""
    left = gib - FREE_GIB - peak / 2**30
    return f"fits {name} ({gib} GiB, {left:.1f} to spare)" if left >= 0 else f"does not fit {name} ({gib} GiB)"


def example(responses: Responses, tokenizer: object) -> Text:
    """One unit in colour: the prompt grey, each response in a colour of its own, its scored tokens underlined."""
    made, ids = Text(), responses.input_ids.flatten().tolist()
    owner, prompt = responses.response_segment_ids.flatten().tolist(), responses.prompt_segment_ids.flatten().tolist()
    first = [i for i, (r, p) in enumerate(zip(owner, prompt, strict=True)) if r < 0 and p == 0]
    first = first[: int(responses.prompt_end[0]) + 1]  # padded rows hold it once a response
    skipped = max(0, len(first) - SHOWN)
    made.append("prompt    ", "bold")
    made.append(f"… {skipped} tokens … " if skipped else "", "dim")
    for i in first[skipped:]:
        made.append(token_text(tokenizer, ids[i]), f"black on {colour(0)}")  # type: ignore[arg-type]
    place = places(responses)
    targets: dict[int, list[int]] = {}
    for _, token, row in scored(responses):
        targets.setdefault(row, []).append(token)
    for row, tokens in targets.items():
        made.append(f"\nresponse {place[row]} ", "bold")
        for token in tokens[: 2 * SHOWN]:
            made.append(token_text(tokenizer, token), f"underline black on {colour(place[row])}")  # type: ignore[arg-type]
        more = len(tokens) - 2 * SHOWN
        made.append(f" … {more} tokens" if more > 0 else "", "dim")
        made.append(f"  {len(tokens)} tokens are scored", "dim")
    return made
