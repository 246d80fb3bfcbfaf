"""What of an example can be learned from; the rest is dropped or left out, and counted."""

import math

from upo.data.example import Example, Response, prompt_key
from upo.data.messages import dumped
from upo.data.report import SourceReport
from upo.errors import UserError

LONGEST = 10_000_000
"""Characters of a prompt with its responses: no model reads as much, and tokenising it would take minutes."""


def check_numbers(example: Example, label: str, number: int) -> Example:
    """The example, whose numbers are finite and whose soft label is a probability.

    Raises:
        UserError: names the source, the example and the field; the source function made it.
    """
    soft = example.soft_label
    if soft is not None and not 0 <= soft <= 1:
        raise UserError(f"{label}: example {number} has soft_label={soft}; give a probability in [0, 1], or None")
    for i, r in enumerate(example.responses):
        named = {"rank": r.rank, "score": r.score, **r.attributes, **r.rewards}
        for name, value in named.items():
            if value is not None and not math.isfinite(value):
                raise UserError(
                    f"{label}: example {number}, response {i} has {name}={value}; give a finite number or None"
                )
    return example


def usable_part(example: Example, report: SourceReport) -> Example | None:
    """The example without what nothing can be learned from; None where nothing is left.

    A pair (two ranked responses) goes as a whole when a response is empty, both are equal, or their ranks or scores
    tie; responses that differ in white space alone are a pair, as code may be. In lists and labelled sets a response
    that is empty or repeats another, but for white space around it, is left out; ties stay. Prompts alone stay so.
    """
    if reason := _defect(example):
        report.drop(reason, example.where)
        return None
    responses = example.responses
    if not responses:  # prompts alone
        return example
    if len(responses) == 2 and all(r.rank is not None for r in responses):
        reason = _pair_defect(*sorted(responses, key=lambda r: r.rank))  # type: ignore[arg-type, return-value]
        if reason:
            report.drop(reason, example.where)
        return None if reason else example
    left: dict[str, Response] = {}
    for response in filter(_says, responses):
        if left.setdefault(_said(response).strip(), response) is not response:
            report.count("repeated response left out", example.where)
    empty = sum(not _says(r) for r in responses)
    if not left:
        report.drop("empty response", example.where)
        return None
    if empty:
        report.count("empty response left out", example.where, number=empty)
    return example.with_responses(tuple(left.values()))


def _defect(example: Example) -> str | None:
    """Why an example cannot be used, whatever its responses are."""
    prompt = example.prompt
    if not (prompt if isinstance(prompt, str) else "".join(m["content"] or "" for m in prompt)).strip():
        return "empty prompt"
    texts = [prompt_key(prompt), example.rationale or "", *map(_said, example.responses)]
    if sum(map(len, texts)) > LONGEST:
        return f"text of more than {LONGEST:,} characters"
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:  # one half of a surrogate pair
        return "text that is not valid Unicode"
    return None


def _pair_defect(chosen: Response, rejected: Response) -> str | None:
    if not _says(chosen):
        return "empty chosen"
    if not _says(rejected):
        return "empty rejected"
    if _said(chosen) == _said(rejected):
        return "identical pair"
    if chosen.rank == rejected.rank or (chosen.score is not None and chosen.score == rejected.score):
        return "tie"
    return None


def _says(response: Response) -> bool:
    """Whether there is anything to learn: a text, or a call of a tool."""
    return bool(response.text.strip() or response.message.get("tool_calls"))


def _said(response: Response) -> str:
    """All of a response, for comparison."""
    return response.text + (f"\0{dumped(response.message)}" if response.message else "")
