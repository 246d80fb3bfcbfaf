"""What a method sees of an example: pairs, labels, lists or demonstrations, as drafts; pure, no tensors."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from attrs import evolve

from upo.data.example import Example, Response, prompt_key
from upo.data.units import Draft, Unit


class View:
    """Base of views. Two of one class and equal options are equal: data made for one serve the other."""

    wants: ClassVar[str] = "response"
    """What an example must have to give a unit, in words."""
    noun: ClassVar[str] = "prompts"
    """What the sampler counts, in words."""
    pairs_up: ClassVar[bool] = False
    """Whether each unit gets a partner from its split, by `join`."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        """The units that an example gives; an empty list where it lacks the annotation.

        Args:
            max_pairs: of a ranked list that is seen as pairs, at most so many, the widest gap first.
        """
        raise NotImplementedError

    def columns(self, example: Example) -> Mapping[str, Sequence[float]]:
        """Numbers by own response that batches bring along, read off a draft's example."""
        return {}

    def contradicts(self, unit: Unit) -> bool:
        """Whether equal token sequences are preferred to one another, e.g. because what differed was cut off."""
        return False

    def partner_key(self, example: Example) -> str:
        """What a unit and its partner differ in: the prompt."""
        return prompt_key(example.prompt)

    def join(self, unit: Unit, partner: Unit | None, max_length: int) -> Unit:
        """A unit with what it takes from its partner; None where all units of the split have the same key."""
        return unit


class DemonstrationView(View):
    """One response a prompt to imitate: the best one, or every desirable one."""

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        labelled = [r for r in example.responses if r.desirable is not None]
        if labelled:
            good = [r for r in labelled if r.desirable]
        else:
            known = [r for r in example.responses if preference(r) is not None]
            good = [max(known, key=preference)] if known else list(example.responses)  # type: ignore[arg-type]
        return [Draft(example.with_responses((r,))) for r in good]


class PairedView(View):
    """Pairs: the chosen response, then the rejected one."""

    wants = "pair of responses of different preference"
    noun = "pairs"

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        """Pairs of different preference, the widest gap first."""
        return [Draft(pair) for pair in pairs_of(example, max_pairs)]

    def columns(self, example: Example) -> Mapping[str, Sequence[float]]:
        return {"preferred": (True, False)}

    def contradicts(self, unit: Unit) -> bool:
        return unit.responses[0] == unit.responses[1]


class UnpairedView(View):
    """Responses with a label each; those of one prompt stay side by side and share it."""

    wants = "desirable or undesirable response, or pair of different preference"

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        """Labels as they are; a preference makes its better response desirable, its worse one undesirable."""
        labelled = tuple(r for r in example.responses if r.desirable is not None)
        if labelled:
            return [Draft(example.with_responses(labelled))]
        return [
            Draft(pair.with_responses(tuple(evolve(r, desirable=not k) for k, r in enumerate(pair.responses))))
            for pair in pairs_of(example, max_pairs)
        ]

    def columns(self, example: Example) -> Mapping[str, Sequence[float]]:
        return {"preferred": [bool(r.desirable) for r in example.responses]}

    def contradicts(self, unit: Unit) -> bool:
        labels = {(tuple(ids), r.desirable) for ids, r in zip(unit.responses, unit.example.responses, strict=True)}
        return len({ids for ids, _ in labels}) < len(labels)


class SingleView(UnpairedView):
    """Labelled responses, each a unit of its own: for methods that draw them, or write their prompts, one by one."""

    noun = "responses"

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        examples = (draft.example for draft in super().drafts(example, max_pairs))
        return [Draft(e.with_responses((r,))) for e in examples for r in e.responses]


class ListwiseView(View):
    """K responses of one prompt with a score each; higher is better."""

    wants = "two responses or more with ranks or scores"

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        known = tuple(r for r in example.responses if preference(r) is not None)
        return [Draft(example.with_responses(known))] if len(known) > 1 else []

    def columns(self, example: Example) -> Mapping[str, Sequence[float]]:
        return {"scores": [float(score) for score in grades(example.responses)]}


def pairs_of(example: Example, max_pairs: int) -> list[Example]:
    """Pairs of different preference, chosen before rejected, the widest gap first."""
    ranked = [(p, r) for r in example.responses if (p := preference(r)) is not None]
    pairs = [(a - b, i, x, y) for i, (a, x) in enumerate(ranked) for b, y in ranked if a > b]
    pairs.sort(key=lambda p: -p[0])
    return [example.with_responses((x, y)) for _, _, x, y in pairs[:max_pairs]]


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
