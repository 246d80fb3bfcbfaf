"""What a method eats: micro-batches of pairs, labels, lists or demonstrations, and the optimizer step that holds them.

A batch type says which units an example gives (`views`), which annotations they need, and how to collate itself.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import torch
from attrs import evolve, field, frozen
from jaxtyping import Bool, Float, Int
from torch import Tensor

from upo.data.example import Example, Prompt, Response, prompt_key
from upo.data.layout import Movable, Responses, Tokens

LayOut = Callable[[Sequence[Tokens]], Responses]


@frozen(eq=False)
class Batch(Movable):
    """A micro-batch; subclasses say how responses are grouped and which annotations they need."""

    responses: Responses
    filler: bool = field(default=False, kw_only=True)
    """True where a rank had too little work: the forward runs, nothing counts."""
    places: Int[Tensor, "N"] | None = field(default=None, kw_only=True)
    """Where each response of the units stands among those of the GLOBAL step, however it is cut."""

    wants: ClassVar[str] = "response"
    """What an example must have to give a unit, in words."""
    unit: ClassVar[str] = "prompts"
    """What the sampler counts, in words."""
    borrows_responses: ClassVar[bool] = False
    """Whether collate also gets each unit's partner: the responses to another prompt (KTO's z0)."""
    borrows_units: ClassVar[bool] = False
    """Whether collate gets the partner itself, prompt and responses (DOVE's joint pairs)."""

    @classmethod
    def views(cls, example: Example, max_pairs: int) -> list[Example]:
        """The units that an example gives; an empty list where it lacks the annotation."""
        raise NotImplementedError

    @classmethod
    def contexts(cls, example: Example) -> list[Prompt]:
        """Further prompts under which a unit's responses are scored too; `collate` finds them in `Tokens.contexts`."""
        return []

    @classmethod
    def companions(cls, example: Example) -> list[Example]:
        """What a unit brings along with prompts and responses of its own (rationales); also in `Tokens.contexts`."""
        return []

    @classmethod
    def collate(cls, units: Sequence[Tokens], lay_out: LayOut, borrowed: Sequence[Tokens]) -> Self:
        """Tensors from units; `lay_out` puts them into the chosen layout.

        Args:
            borrowed: for each unit its prompt with another prompt's responses, where `borrows_responses`, or the
                partner itself, where `borrows_units`; empty where nobody has a partner.
        """
        return cls(lay_out(units))

    @classmethod
    def partner_key(cls, example: Example) -> str:
        """What a unit and its partner differ in: the prompt."""
        return prompt_key(example.prompt)

    @classmethod
    def contradicts(cls, unit: Tokens) -> bool:
        """Whether equal token sequences are preferred to one another, e.g. because what differed was cut off."""
        return False

    @property
    def prompt_places(self) -> list[int]:
        """A number for each prompt that is its own in the GLOBAL step: where its first response stands."""
        assert self.places is not None, "StepData numbers the responses"
        index = self.responses.prompt_index
        return self.places[torch.searchsorted(index, torch.arange(len(self.responses.prompt_end)).to(index))].tolist()

    @property
    def counts(self) -> dict[str, int]:
        """What terms of a loss may be averaged over: prompts (a pair is one), responses, response tokens."""
        r = self.responses
        return {"prompts": len(r.prompt_end), "responses": len(r.lengths), "tokens": len(r.targets)}


@frozen(eq=False)
class DemonstrationBatch(Batch):
    """One response a prompt to imitate: the best one, or every desirable one."""

    @classmethod
    def views(cls, example: Example, max_pairs: int) -> list[Example]:
        labelled = [r for r in example.responses if r.desirable is not None]
        if labelled:
            good = [r for r in labelled if r.desirable]
        else:
            known = [r for r in example.responses if preference(r) is not None]
            good = [max(known, key=preference)] if known else list(example.responses)  # type: ignore[arg-type]
        return [example.with_responses((r,)) for r in good]


@frozen(eq=False)
class PairedBatch(Batch):
    """B pairs: row 2i is the chosen, row 2i + 1 the rejected response of prompt i."""

    wants, unit = "pair of responses of different preference", "pairs"

    @classmethod
    def contradicts(cls, unit: Tokens) -> bool:
        return unit.responses[0] == unit.responses[1]

    @classmethod
    def views(cls, example: Example, max_pairs: int) -> list[Example]:
        """Pairs of different preference, the widest gap first."""
        ranked = [(p, r) for r in example.responses if (p := preference(r)) is not None]
        pairs = [(a - b, i, x, y) for i, (a, x) in enumerate(ranked) for b, y in ranked if a > b]
        pairs.sort(key=lambda p: -p[0])
        return [example.with_responses((x, y)) for _, _, x, y in pairs[:max_pairs]]

    @property
    def preferred(self) -> Bool[Tensor, "N"]:
        return torch.arange(len(self.responses.lengths), device=self.responses.lengths.device) % 2 == 0


@frozen(eq=False)
class UnpairedBatch(Batch):
    """N responses with a label each; responses of one prompt stay side by side and share it."""

    desirable: Bool[Tensor, "N"]

    wants = "desirable or undesirable response, or pair of different preference"

    @classmethod
    def contradicts(cls, unit: Tokens) -> bool:
        labels = {(tuple(ids), r.desirable) for ids, r in zip(unit.responses, unit.example.responses, strict=True)}
        return len({ids for ids, _ in labels}) < len(labels)

    @classmethod
    def views(cls, example: Example, max_pairs: int) -> list[Example]:
        """Labels as they are; a preference makes its better response desirable, its worse one undesirable."""
        labelled = tuple(r for r in example.responses if r.desirable is not None)
        if labelled:
            return [example.with_responses(labelled)]
        return [
            pair.with_responses((evolve(pair.responses[0], desirable=True), evolve(pair.responses[1], desirable=False)))
            for pair in PairedBatch.views(example, max_pairs)
        ]

    @classmethod
    def collate(cls, units: Sequence[Tokens], lay_out: LayOut, borrowed: Sequence[Tokens]) -> Self:
        desirable = torch.tensor([bool(r.desirable) for u in units for r in u.example.responses])
        return cls(lay_out(units), desirable)

    @property
    def preferred(self) -> Bool[Tensor, "N"]:
        return self.desirable


@frozen(eq=False)
class SingleBatch(UnpairedBatch):
    """Labelled responses, each a unit of its own: for methods that draw them, or write their prompts, one by one."""

    wants, unit = UnpairedBatch.wants, "responses"

    @classmethod
    def views(cls, example: Example, max_pairs: int) -> list[Example]:
        views = UnpairedBatch.views(example, max_pairs)
        return [view.with_responses((r,)) for view in views for r in view.responses]


@frozen(eq=False)
class ListwiseBatch(Batch):
    """N responses with a score each, K of one prompt side by side; higher is better."""

    scores: Float[Tensor, "N"]

    wants = "two responses or more with ranks or scores"

    @classmethod
    def views(cls, example: Example, max_pairs: int) -> list[Example]:
        known = tuple(r for r in example.responses if preference(r) is not None)
        return [example.with_responses(known)] if len(known) > 1 else []

    @classmethod
    def collate(cls, units: Sequence[Tokens], lay_out: LayOut, borrowed: Sequence[Tokens]) -> Self:
        scores = [score for u in units for score in grades(u.example.responses)]
        return cls(lay_out(units), torch.tensor(scores, dtype=torch.float32))


def grades(responses: Sequence[Response]) -> list[float]:
    """Scores of a list where all have one: they say how much better; otherwise ranks or labels, higher is better."""
    if all(r.score is not None for r in responses):
        return [r.score for r in responses]  # type: ignore[misc]
    return [preference(r) for r in responses]  # type: ignore[misc]


def preference(response: Response) -> float | None:
    """How good a response is within its prompt, higher is better: its rank where given, else its score or label."""
    if response.rank is not None:
        return -response.rank
    if response.score is not None:
        return response.score
    return None if response.desirable is None else float(response.desirable)


@frozen(eq=False)
class Step(Movable):
    """One optimizer step: this rank's micro-batches and what the GLOBAL step counts."""

    micro_batches: tuple[Batch, ...]
    counts: dict[str, int]
    """Prompts, responses and response tokens of the whole step, over all ranks."""
