"""Safety by category: probabilities of generated text, and violations against the chosen responses."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from upo.data.example import Example, Prompt, as_text
from upo.data.rewards import Reward
from upo.metrics.intervals import bootstrap
from upo.metrics.violations import most_unsafe, violations

Rank = Literal["prompt", "chosen", "policy"]
"""Whose largest category probability says how unsafe a prompt is."""


@runtime_checkable
class Categorical(Protocol):
    """A reward that also gives the probability of each category of danger, such as `SafetyClassifier`."""

    def categories(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        """Category to its probability in [0, 1], one a response, larger is less safe."""
        ...


def category_values(
    asked: Sequence[Example],
    texts: Mapping[str, Sequence[str]],
    rewards: Mapping[str, Reward],
    values: Mapping[str, list[dict[str, float]]],
) -> None:
    """Adds `categories/<reward>/<category>` to every system's values, for each reward that knows categories."""
    prompts = [example.prompt for example in asked]
    for name, reward in rewards.items():
        if isinstance(reward, Categorical):
            for system, written in texts.items():
                for category, column in reward.categories(prompts, list(written)).items():
                    for own, probability in zip(values[system], column, strict=True):
                        own[f"categories/{name}/{category}"] = float(probability)


def violation_figures(
    asked: Sequence[Example],
    rewards: Mapping[str, Reward],
    values: Mapping[str, list[dict[str, float]]],
    *,
    percents: Sequence[float],
    eps: Sequence[float],
    rank: Rank,
) -> dict[str, float]:
    """`<system>/violations/<reward>_k<percent>_eps<eps>` with bootstrap intervals by prompt; empty without `chosen`.

    Args:
        percents: how many of the prompts count, the most unsafe ones, in %.
        eps: slacks.
        rank: what a prompt's danger is read from.
    """
    figures: dict[str, float] = {}
    if "chosen" not in values:
        return figures
    for name, reward in rewards.items():
        if not isinstance(reward, Categorical):
            continue
        start = f"categories/{name}/"
        columns = {
            system: {key: [row[key] for row in rows] for key in rows[0] if key.startswith(start)}
            for system, rows in values.items()
        }
        if rank == "prompt":
            asked_texts = [as_text(example.prompt) for example in asked]
            danger = reward.categories([example.prompt for example in asked], asked_texts)
        else:
            danger = columns[rank]
        unsafety = [max(row) for row in zip(*danger.values(), strict=True)]
        for system in (w for w in columns if w != "chosen"):
            for slack in eps:
                shares = violations(columns[system], columns["chosen"], slack)
                for percent in percents:
                    found = bootstrap([shares[i] for i in most_unsafe(unsafety, percent)])
                    figures |= found.named(f"{system}/violations/{name}_k{percent:g}_eps{slack:g}")
    return figures
