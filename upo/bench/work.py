"""What one worker of the bench computes, and on which rows."""

import random
from typing import Literal

from attrs import asdict, frozen

LENGTHS: dict[str, tuple[tuple[int, float, int], tuple[int, float, int]]] = {
    "hh": ((120, 0.8, 384), (55, 0.8, 256)),
    "prompt-heavy": ((300, 0.4, 768), (40, 0.6, 128)),
    "response-heavy": ((40, 0.5, 128), (200, 0.5, 512)),
    "long": ((2500, 0.2, 3400), (400, 0.3, 650)),
}
"""Median, spread of the logarithm and cap, in tokens, of prompts and of responses."""


@frozen
class Work:
    """One worker's job: who computes what, on which rows and model."""

    engine: Literal["upo", "trl", "forward"]
    """`forward` is the bare policy: log-probs of a batch and their gradient, no trainer."""
    method: str = "DPO"
    layout: Literal["packed", "padded"] = "packed"
    stored: bool = False
    """Reference log-probs computed before the clock starts."""
    lengths: str = "hh"
    prompt: int = 0
    """Tokens of every prompt where lengths are fixed (0: drawn from `lengths`)."""
    response: int = 0
    responses: int = 2
    """Responses a prompt."""
    pairs: int = 4
    """Prompts a step."""
    vocabulary: int = 16384
    model: str = "9M"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 2
    device: str = "cpu"
    steps: int = 4
    """Steps of one measured block."""

    def plain(self) -> dict:
        return asdict(self)


def rows(work: Work, count: int) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts and responses as token numbers, the same for every engine."""
    draw = random.Random(0)

    def length(median: int, spread: float, cap: int) -> int:
        return min(cap, max(4, round(median * draw.lognormvariate(0, spread))))

    def tokens(n: int) -> list[int]:
        return [draw.randrange(4, 4096) for _ in range(n)]

    made = []
    for _ in range(count):
        prompt, response = LENGTHS[work.lengths]
        p = work.prompt or length(*prompt)
        made.append((tokens(p), [tokens((work.response or length(*response)) - 1) for _ in range(work.responses)]))
    return made
