"""What ends a response that a model writes."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from upo.data.tokenize import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from upo.rollout.sampling import Completion

NEAR_0 = 0.02
"""Share of responses that end by themselves below which something is wrong."""


def stop_tokens(model: "PreTrainedModel", encoder: Encoder) -> set[int]:
    """Token ids that end a response: those of `Encoder.stops`, and what the model's generation config stops at."""
    known = getattr(model.generation_config, "eos_token_id", None)
    return encoder.stops | ({known} if isinstance(known, int) else set(known or ()))


def warn_unended(name: str, written: "Sequence[Completion]", max_new_tokens: int) -> None:
    """Warns where next to no response ended before its limit: texts that were all cut are judged and measured so."""
    ended = sum(s.finish_reason == "stop" for s in written)
    if written and ended < NEAR_0 * len(written):
        warnings.warn(
            f"{ended} of {len(written)} responses of {name} ended within {max_new_tokens} tokens: raise "
            "max_new_tokens, or take the chat template that the model was trained with (policy.chat_template)"
        )


def up_to(stops: set[int], ids: list[int]) -> list[int]:
    """Token ids up to the first that ends a response, that one included."""
    return ids[: next((i + 1 for i, x in enumerate(ids) if x in stops), len(ids))]
