"""Train and validation split by prompt, and the mixture of several sources."""

import hashlib
from collections.abc import Sequence
from random import Random

from upo.data.example import Example, prompt_key
from upo.errors import UserError


def split_by_prompt(
    examples: Sequence[Example], validation: int | float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Splits so that no prompt is on both sides; each side keeps the order of `examples`.

    A prompt's side depends on its text and the seed, not on order or other sources: with a share, data that is added
    later never moves a prompt from one side to the other.

    Args:
        validation: number of held-out prompts (int, kept exactly), or their share in [0, 1) (float, in expectation).
        seed: another seed holds out other prompts.

    Returns:
        Train and validation examples.

    Raises:
        UserError: the number leaves no prompt to train on, or the share is not in [0, 1).
    """
    places = {key: _place(key, seed) for key in {prompt_key(e.prompt) for e in examples}}
    if isinstance(validation, int):
        if not 0 <= validation < max(len(places), 1):
            raise UserError(f"cannot hold out {validation} of {len(places)} prompts; lower `validation`")
        held_out = set(sorted(places, key=lambda key: (places[key], key))[:validation])
    else:
        if not 0 <= validation < 1:
            raise UserError(f"validation={validation}: a share lies in [0, 1); write a whole number to count prompts")
        held_out = {key for key, place in places.items() if place < validation}
    train = [e for e in examples if prompt_key(e.prompt) not in held_out]
    return train, [e for e in examples if prompt_key(e.prompt) in held_out]


def mix(parts: Sequence[tuple[Sequence[Example], float]], seed: int) -> list[Example]:
    """Examples of all parts, each as often an epoch as its weight says, part by part (samplers shuffle later).

    Args:
        parts: examples and their weight > 0: 2 takes each twice, 0.5 a random half, 2.5 each twice and a half thrice.
        seed: which examples a fractional weight takes; fixed for the run. A part's choice does not depend on others.
    """
    mixture: list[Example] = []
    for examples, weight in parts:
        whole = int(weight)
        rest = round((weight - whole) * len(examples))
        chosen = sorted(Random(seed).sample(range(len(examples)), rest))
        mixture += [e for _ in range(whole) for e in examples]
        mixture += [examples[i] for i in chosen]
    return mixture


def _place(key: str, seed: int) -> float:
    """A number in [0, 1) that looks random and is the same on every machine (Python's own `hash` is not)."""
    digest = hashlib.sha256(f"{seed}\x1d{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
