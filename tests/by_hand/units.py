"""Nine units of made-up tokens for every batch type, of uneven lengths and with all annotations.

Numbers are sums of powers of two: batches keep them in float32, where these are exact.
"""

from collections.abc import Sequence

import torch
from attrs import evolve

from upo.data.example import Example, Response
from upo.data.units import Group, Unit

NUMBER = 9
NEWLINE = 201
"""The token of a line break in `tiny.tokenizer`."""
GAPS = (0.5, 1.5, 0.75, 2.0, 1.25)
"""Of the scores within a unit: below and above 1."""
SOFT_LABELS = (0.625, 0.75, 0.875, 1.0)
LABELS = ("+-", "+", "++-", "-", "-+", "++", "-", "-+-", "+-")
"""Seven desirable and four undesirable ones among the first six units, two and four among the others."""


class Draw:
    """Random token ids, seeded."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __call__(self, least: int, most: int) -> list[int]:
        (length,) = torch.randint(least, most + 1, (1,), generator=self.generator).tolist()
        return torch.randint(3, 300, (length,), generator=self.generator).tolist()


def annotated(unit: int, place: int) -> Response:
    """Rewards in [0, 1], scores and win rates that fall from response to response."""
    return Response(
        f"{unit}/{place}",
        desirable=place == 0,
        score=2 - place * GAPS[unit % len(GAPS)],
        rewards={"clear": (3 * unit + 5 * place) % 8 / 8, "safe": (5 * unit + 3 * place + 1) % 8 / 8},
        attributes={"win_rate": 0.75 - 0.5 * place + unit / 64},
    )


def with_responses(unit: Unit, ids: tuple[list[int], ...]) -> Unit:
    """The same unit of one group with other token ids."""
    return evolve(unit, groups=(evolve(unit.groups[0], responses=ids),))


def made(numbers: Sequence[int], longest: int = 7) -> list[Unit]:
    """Units with so many responses each."""
    draw, units = Draw(), []
    for i, number in enumerate(numbers):
        responses = tuple(annotated(i, k) for k in range(number))
        example = Example(f"prompt {i}", responses, soft_label=SOFT_LABELS[i % len(SOFT_LABELS)], rationale="so")
        unit = Unit.of(draw(2, 6), tuple(draw(1, longest) for _ in range(number)), example)
        units.append(evolve(unit, columns={"win_rates": [r.attributes["win_rate"] for r in responses]}))
    return units


def pairs() -> list[Unit]:
    """Chosen and rejected."""
    return made([2] * NUMBER)


def triples() -> list[Unit]:
    """Gold, chosen and rejected."""
    return made([3] * NUMBER)


def labelled() -> list[Unit]:
    """One to three responses a prompt, of both labels, some with line breaks in them."""
    units = []
    for i, unit in enumerate(made([len(x) for x in LABELS])):
        labels = tuple(evolve(r, desirable=x == "+") for r, x in zip(unit.example.responses, LABELS[i], strict=True))
        ids = [list(response) for response in unit.responses]
        for k, response in enumerate(ids):
            if len(response) > 3:
                response[1 : 2 + k] = [NEWLINE] * (1 + k)
        made_so = with_responses(unit, tuple(ids))
        units.append(evolve(made_so, example=unit.example.with_responses(labels)))
    return units


def singles() -> list[Unit]:
    """One response a prompt, every other one desirable."""
    return [
        evolve(u, example=u.example.with_responses((evolve(u.example.responses[0], desirable=i % 3 != 1),)))
        for i, u in enumerate(made([1] * NUMBER))
    ]


def joint() -> list[Unit]:
    """One response a prompt, with one of three scores."""
    return [
        evolve(u, example=u.example.with_responses((evolve(u.example.responses[0], score=float(i % 3)),)))
        for i, u in enumerate(made([1] * NUMBER))
    ]


def lists() -> list[Unit]:
    """Two to four responses in any order; two of them may be the best or the worst."""
    scores = ((1, 2, 0), (0, 2), (2, 1, 2, 0), (1, 0), (0, 1, 3), (0.5, 0), (1, 3, 1, 2), (0, 1, 0), (2, 0))
    units = []
    for unit, own in zip(made([len(x) for x in scores]), scores, strict=True):
        scored = tuple(evolve(r, score=float(x)) for r, x in zip(unit.example.responses, own, strict=True))
        units.append(evolve(unit, example=unit.example.with_responses(scored)))
    return units


def degraded() -> list[Unit]:
    """Pairs with copies of degree 1 to 3 of either response, none to three of each."""
    degrees = (((3, 1), (2,)), ((), (3, 2, 1)), ((1,), ()), ((2, 1), (3, 2)), ((), ()))
    units = []
    for i, unit in enumerate(made([2 + sum(map(len, degrees[i % len(degrees)])) for i in range(NUMBER)])):
        copies = [(place, degree) for place, own in enumerate(degrees[i % len(degrees)]) for degree in own]
        known = tuple(Response(f"copy {c}", attributes={"copy_of": c[0], "degree": c[1]}) for c in copies)
        owners = [0, 1, *(place for place, _ in copies)]
        columns = {
            "degrees": [0, 0, *(degree for _, degree in copies)],
            "originals": [True, True, *(False for _ in copies)],
            "preferred": [True, *(False for _ in owners[1:])],
            "shares": [1 / owners.count(owner) for owner in owners],
        }
        example = unit.example.with_responses((*unit.example.responses[:2], *known))
        units.append(evolve(unit, example=example, columns=columns))
    return units


def shown() -> list[Unit]:
    """Pairs under two further prompts, in which chosen and rejected stand."""
    units = []
    for unit in pairs():
        again = (Group([*unit.prompt, *ids, 7], unit.responses, "improver") for ids in unit.responses)
        units.append(evolve(unit, groups=(*unit.groups, *again)))
    return units


def explained() -> list[Unit]:
    """Pairs with a rationale under a prompt of its own."""
    draw, units = Draw(), []
    for u in pairs():
        units.append(u.with_group(Group([*u.prompt, *u.responses[0], 8], (draw(2, 5),), "rationale")))
    return units
