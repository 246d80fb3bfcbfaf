"""What training is made of: a draft is a unit in texts, a unit the same as token ids."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from attrs import evolve, field, frozen

from upo.data.example import Example, Prompt, Response

Role = Literal["own", "mismatched", "rationale", "improver"]
"""Why a unit scores a group: `own` is what a method learns from, and alone is counted; `mismatched` are another unit's
responses behind the own prompt, laid out apart and scored without gradient (KTO's z0); `rationale` and `improver`
follow the own group, in the same forward pass."""

Ids = Sequence[int]


@frozen
class DraftGroup:
    """A further prompt of a draft, with responses of its own."""

    role: Role
    prompt: Prompt
    responses: tuple[Response, ...] | None = None
    """None: the draft's own responses once more, as the same token ids."""


@frozen
class Draft:
    """A unit in texts, as a view makes it of an example; its own group is the example's prompt and responses."""

    example: Example
    further: tuple[DraftGroup, ...] = ()
    columns: Mapping[str, Sequence[float]] = field(factory=dict)
    """Numbers by own response that the example alone does not tell, e.g. {"win_rates": (0.8, 0.1)}."""


@frozen
class Group:
    """One prompt with K responses as token ids.

    Example: Group([1, 5, 9], ([7, 2], [8, 8, 2])) is a pair; 2 is EOS, which is scored like any other token.
    """

    prompt: Ids
    responses: tuple[Ids, ...]
    role: Role = "own"
    scored: tuple[Sequence[bool] | None, ...] = ()
    """By response, which of its tokens are scored: a tool's output in a dialogue is read and not learned. Empty, or
    None for a response: all of them."""

    @property
    def cost(self) -> int:
        """Input tokens in the packed layout."""
        return len(self.prompt) + sum(len(r) - 1 for r in self.responses)

    @property
    def padded_cost(self) -> int:
        """Input tokens in the padded layout, up to the group's longest response."""
        return len(self.responses) * (len(self.prompt) + max(map(len, self.responses)) - 1)

    @property
    def scored_lengths(self) -> list[int]:
        """Scored tokens of each response."""
        masks = self.scored or (None,) * len(self.responses)
        return [len(r) if m is None else sum(map(bool, m)) for r, m in zip(self.responses, masks, strict=True)]


@frozen
class Unit:
    """What a step counts as one: a pair, a list, a labelled prompt, with everything that is scored for it.

    Example: a pair for SRPO has three groups, the own prompt with both responses, then both again behind either
    response, in the role `improver`.
    """

    groups: tuple[Group, ...]
    example: Example
    columns: Mapping[str, Sequence[float]] = field(factory=dict)
    """Numbers by response of the own groups, beside those that the view reads off the example."""

    @classmethod
    def of(cls, prompt: Ids, responses: Sequence[Ids], example: Example | None = None, **fields: Any) -> "Unit":
        """A unit of one group, from token ids."""
        group = Group(prompt, tuple(responses), **fields)
        return cls((group,), example or Example("", tuple(Response("") for _ in group.responses)))

    @property
    def prompt(self) -> Ids:
        """Of the first group."""
        return self.groups[0].prompt

    @property
    def responses(self) -> tuple[Ids, ...]:
        """Of the first group."""
        return self.groups[0].responses

    @property
    def own(self) -> tuple[Group, ...]:
        """The groups that the method learns from."""
        return tuple(g for g in self.groups if g.role == "own")

    @property
    def together(self) -> tuple[Group, ...]:
        """All groups of the forward pass that has a gradient."""
        return tuple(g for g in self.groups if g.role != "mismatched")

    @property
    def mismatched(self) -> tuple[Group, ...]:
        """Another unit's responses behind the own prompt."""
        return tuple(g for g in self.groups if g.role == "mismatched")

    @property
    def size(self) -> int:
        """Own responses."""
        return sum(len(g.responses) for g in self.own)

    @property
    def cost(self) -> int:
        """Input tokens of the forward pass that has a gradient, in the packed layout."""
        return sum(g.cost for g in self.together)

    @property
    def padded_cost(self) -> int:
        """The same in the padded layout."""
        return sum(g.padded_cost for g in self.together)

    def with_group(self, group: Group) -> "Unit":
        return evolve(self, groups=(*self.groups, group))
