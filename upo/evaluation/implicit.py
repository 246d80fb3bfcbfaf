"""Implicit rewards of preference data: what a trained policy thinks of pairs, and where it disagrees with their labels.

A method's reward is a function of log-probs (DPO: beta log(policy / reference)); nothing is generated.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from attrs import frozen

from upo.data.example import Example, Prompt
from upo.errors import UserError

if TYPE_CHECKING:
    from upo.data.module import PreferenceData
    from upo.methods.common.base import Method


@frozen
class ScoredPair:
    """A pair with the implicit rewards of its responses."""

    example: Example
    """responses[0] is the one that the label prefers."""
    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        """Reward of the chosen minus that of the rejected response: below 0 policy and label disagree."""
        return self.chosen - self.rejected

    @property
    def prompt(self) -> Prompt:
        return self.example.prompt

    @property
    def texts(self) -> tuple[str, str]:
        """The chosen response and the rejected one."""
        return self.example.responses[0].text, self.example.responses[1].text


@torch.no_grad()
def implicit_rewards(
    method: "Method", data: "PreferenceData", examples: Sequence[Example] | None = None
) -> list[ScoredPair]:
    """Implicit rewards of pairs, in the order of the examples, of a run that `load_run` reads back.

    Args:
        method: with trained weights and its reference.
        data: gives the limits on lengths and, by default, the examples.
        examples: by default the held-out ones of `data`. Where a prompt has several pairs, at most
            `data.max_pairs_per_prompt` are taken; too long ones are cut or dropped as in training.

    Raises:
        UserError: the method defines no implicit reward, or the examples hold no pair.
    """
    from upo.data.codec import TextCodec
    from upo.evaluation import measure

    examples = measure.held_out_examples(data) if examples is None else examples
    pairs = measure.held_out_pairs(examples, data, TextCodec(method.policy.tokenizer))
    if not pairs:
        raise UserError("no pair of responses among these examples; take data with preferences, or more of it")
    reference = method.reference and method.reference.load_model()
    logps = measure.log_probs(method.policy, reference, pairs, data, "implicit rewards")
    found = measure.rewards(method, logps, pairs, data)
    if found is None:
        name = type(method).__name__
        raise UserError(f"{name} defines no implicit reward; take a run of a preference method")
    rewards = found.tolist()
    return [
        ScoredPair(unit.example, *both)
        for unit, both in zip(pairs, zip(rewards[0::2], rewards[1::2], strict=True), strict=True)
    ]
