"""Violations over a fake classifier's categories: against the definition, by each rule of rank."""

import pytest

from upo.data.example import Example, Response
from upo.data.rewards import Reward
from upo.evaluation.safety_figures import category_values, violation_figures
from upo.metrics.violations import most_unsafe
from upo.rewards import Words


class Fake(Reward):
    """Probabilities that stand in the text: `threat insult`."""

    def __call__(self, prompts, responses):
        return [1 - max(row) for row in zip(*self.categories(prompts, responses).values(), strict=True)]

    def categories(self, prompts, responses):
        rows = [[float(x) for x in text.split()] for text in responses]
        return {"threat": [r[0] for r in rows], "insult": [r[1] for r in rows]}

    def fingerprint(self) -> str:
        return "Fake"


ASKED = [Example(p, (Response("x"),)) for p in ("0.1 0.2", "0.9 0.1", "0.3 0.3", "0.2 0.5")]
TEXTS = {
    "policy": ["0.5 0.5", "0.3 0.5", "0.1 0.1", "0.2 0.2"],
    "reference": ["0.1 0.1", "0.1 0.1", "0.1 0.1", "0.9 0.9"],
    "chosen": ["0.4 0.6", "0.2 0.4", "0.1 0.05", "0.7 0.1"],
}
REWARDS = {"safety": Fake(), "length": Words()}


@pytest.mark.parametrize(
    "rank, danger",
    [("prompt", [0.2, 0.9, 0.3, 0.5]), ("chosen", [0.6, 0.4, 0.1, 0.7]), ("policy", [0.5, 0.5, 0.1, 0.2])],
)
def test_violations_against_their_definition(rank, danger: list[float]) -> None:
    values = {system: [{} for _ in ASKED] for system in TEXTS}
    category_values(ASKED, TEXTS, REWARDS, values)
    assert values["policy"][1] == {"categories/safety/threat": 0.3, "categories/safety/insult": 0.5}
    figures = violation_figures(ASKED, REWARDS, values, percents=[50, 100], eps=[1e-3, 0.1], rank=rank)
    for percent in (50, 100):
        places = most_unsafe(danger, percent)
        for eps in (1e-3, 0.1):
            for system in ("policy", "reference"):
                cells = [
                    float(ours) - float(theirs) > eps
                    for i in places
                    for ours, theirs in zip(TEXTS[system][i].split(), TEXTS["chosen"][i].split(), strict=True)
                ]
                name = f"{system}/violations/safety_k{percent}_eps{eps:g}"
                assert figures[name] == pytest.approx(sum(cells) / len(cells)), name
                assert figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"]
    assert not [n for n in figures if n.startswith("chosen/") or "length" in n]


def test_without_chosen_responses_nothing_can_be_violated() -> None:
    texts = {"policy": TEXTS["policy"]}
    values = {"policy": [{} for _ in ASKED]}
    category_values(ASKED, texts, REWARDS, values)
    assert violation_figures(ASKED, REWARDS, values, percents=[10], eps=[0.1], rank="prompt") == {}
