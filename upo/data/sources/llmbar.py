"""LLMBar (Zeng et al. 2023, https://arxiv.org/abs/2310.07641): pairs whose worse output looks better."""

from upo.data.example import Example
from upo.data.lines import Row, Unusable
from upo.data.sources.parts import pair, per_row, user


@per_row
def llmbar(row: Row) -> Example:
    """An instruction and two outputs, of which `label` (1 or 2) says the better one."""
    label = row.number("label")
    if label not in (1, 2):
        raise Unusable("`label` is neither 1 nor 2")
    first, second = row.text("output_1"), row.text("output_2")
    return pair(user(row.text("input")), *((first, second) if label == 1 else (second, first)))
