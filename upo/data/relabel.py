"""Preferences replaced by measured rewards: what a preference method learns where its labels know the objectives.

The control that reviewers ask for when a method with auxiliary rewards is compared with one that only sees labels.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median

from attrs import evolve

from upo.data.example import Example, Response
from upo.data.report import DataReport
from upo.data.views import preference


def relabel(
    train: Sequence[Example], validation: Sequence[Example], weights: Mapping[str, float], report: DataReport
) -> tuple[list[Example], list[Example]]:
    """Both splits with `Response.score` = sum_i w_i r_i as the only preference; what the data said before is gone.

    Of several responses to a prompt the higher score is better, whether or not the record had a preference. A response
    that stands alone is desirable above the median of all such responses of the training data, undesirable below it.
    Ties are dropped and counted, as is every pair whose preference turned.

    Args:
        weights: w_i by name of a reward that `upo.data.annotate` has measured.
    """
    alone = [score(e.responses[0], weights) for e in train if len(e.responses) == 1]
    middle = median(alone) if alone else None
    kept: list[list[Example]] = []
    for examples in (train, validation):
        made = (_relabelled(example, weights, middle, report) for example in examples)
        kept.append([example for example in made if example is not None])
    return kept[0], kept[1]


def score(response: Response, weights: Mapping[str, float]) -> float:
    """sum_i w_i r_i."""
    return sum(weight * response.rewards[name] for name, weight in weights.items())


def _relabelled(
    example: Example, weights: Mapping[str, float], middle: float | None, report: DataReport
) -> Example | None:
    scores = [score(r, weights) for r in example.responses]
    labels: tuple[bool | None, ...]
    if len(scores) == 1:
        if middle is None:
            report.drop(example.source, "alone, and no such response to compare with in training")
            return None
        above = scores[0] > middle
        labels = (above,)
        tied = [scores[0] == middle]
        before = example.responses[0].desirable
        turned = [before is not None and before != above and not tied[0]]
    else:
        labels = (None,) * len(scores)
        couples = list(combinations(range(len(scores)), 2))
        tied = [scores[i] == scores[j] for i, j in couples]
        turned = [_turned(example.responses[i], example.responses[j], scores[i] - scores[j]) for i, j in couples]
    if all(tied):
        report.drop(example.source, "tie after relabelling")
        return None
    if number := sum(tied):
        report.count(example.source, "tie after relabelling within a list, pair left out", number=number)
    if number := sum(turned):
        report.count(example.source, "preference turned by relabelling", number=number)
    responses = tuple(
        evolve(r, rank=None, desirable=label, score=s)
        for r, label, s in zip(example.responses, labels, scores, strict=True)
    )
    # votes and explanations are about the old preference
    return evolve(example, responses=responses, soft_label=None, rationale=None)


def _turned(first: Response, second: Response, gap: float) -> bool:
    a, b = preference(first), preference(second)
    return a is not None and b is not None and (a - b) * gap < 0
