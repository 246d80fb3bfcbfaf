"""What rewards say about preference data before any training: do they agree with the labels, and with one another?"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from upo.data.annotate import annotate
from upo.data.example import Example, Response, prompt_key
from upo.data.rewards import Reward, VectorReward, fit_all
from upo.data.views import pairs_of
from upo.errors import UserError
from upo.metrics.intervals import wilson

if TYPE_CHECKING:
    from upo.data.module import PreferenceData

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
OBJECTIVE = "objective"
"""Column of R = sum_i w_i r_i, where the method weighs several rewards."""

Side = tuple[list[Response], list[object]]
"""Responses and the prompts that they belong to."""


def survey(
    data: "PreferenceData", rewards: Mapping[str, Reward], weights: Mapping[str, float], limit: int | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measures the rewards of the training split and describes them; held-out examples stay unseen.

    A reward is in conflict with a pair where it is better for the rejected response.

    Args:
        data: its sources and its split; nothing is tokenised.
        rewards: by name.
        weights: of those that make the objective.
        limit: at most so many examples, a random choice that is always the same.

    Returns:
        Plain figures (the content of rewards.json), and the values behind them: name to [2, rows], chosen above
        rejected; row i of both sides is one pair. For data with labels but without pairs the sides are the desirable
        and the undesirable responses, padded with NaN.

    Raises:
        UserError: nothing to survey.
    """
    if not rewards:
        raise UserError("the config names no reward: add some to `data.rewards`; `python -m upo.rewards` lists them")
    if missing := [name for name in weights if name not in rewards]:
        raise UserError(f"the method weighs the rewards {missing}, which `data.rewards` lacks: {list(rewards)}")
    train, held_out = data.examples()
    fit_all(rewards, train, held_out, data.rewards_cache)
    if limit is not None and limit < len(train):
        train = [train[i] for i in sorted(Random(0).sample(range(len(train)), limit))]
    sides, paired = _sides(train, data.max_pairs_per_prompt, rewards, data.rewards_cache)
    columns = {name: _column([[r.rewards[name] for r in side] for side, _ in sides]) for name in sides[0][0][0].rewards}
    better = {k: v for name, reward in rewards.items() for k, v in _directions(name, reward, columns).items()}
    columns = {name: columns[name] for name in better}  # without what the data brought along
    if len(weights) > 1:  # of one alone it would be the same again
        columns[OBJECTIVE] = sum((w * columns[name] for name, w in weights.items()), np.zeros(1))
        better[OBJECTIVE] = True
    prompts = sides[0][1]
    content: dict[str, Any] = {
        "prompts": len({key for _, keys in sides for key in keys}),
        "pairs": len(prompts) if paired else 0,
        "responses": [len(side) for side, _ in sides],
        "rewards": {
            name: {"higher_is_better": better[name], "weight": weights.get(name)}
            | _described(values, better[name], prompts if paired else None)
            for name, values in columns.items()
        },
    }
    names = [*columns, "label"]
    values = [x.ravel() for x in columns.values()] + [np.repeat([1.0, 0.0], len(next(iter(columns.values()))[0]))]
    content["correlations"] = {"names": names, "spearman": _plain(rank_correlations(np.stack(values)))}
    return content, columns


def _sides(
    train: Sequence[Example], max_pairs: int, rewards: Mapping[str, Reward], cache_dir: Path
) -> tuple[tuple[Side, Side], bool]:
    """Chosen and rejected responses of all pairs; or, where there is none, the desirable and the undesirable ones."""
    pairs = [pair for example in train for pair in pairs_of(example, max_pairs)]
    if pairs:
        done = annotate(pairs, rewards, cache_dir)
        keys: list[object] = [prompt_key(e.prompt) for e in done]
        return (([e.responses[0] for e in done], keys), ([e.responses[1] for e in done], keys)), True
    done = annotate(train, rewards, cache_dir)
    sides = tuple(
        (
            [r for e in done for r in e.responses if r.desirable is wanted],
            [prompt_key(e.prompt) for e in done for r in e.responses if r.desirable is wanted],
        )
        for wanted in (True, False)
    )
    if not sides[0][0] or not sides[1][0]:
        raise UserError("the training split has neither pairs nor both labels: no reward can be set against a label")
    return sides, False  # type: ignore[return-value]


def _column(sides: list[list[float]]) -> np.ndarray:
    rows = max(map(len, sides))
    return np.array([side + [math.nan] * (rows - len(side)) for side in sides])


def _directions(name: str, reward: Reward, columns: Mapping[str, np.ndarray]) -> dict[str, bool | None]:
    """{column: whether more is better}, the reward's own column first."""
    found = {name: reward.higher_is_better}
    if isinstance(reward, VectorReward):
        for part, inner in reward.parts.items():
            found |= _directions(f"{name}/{part}", inner, columns)
        if not reward.parts:
            found |= {k: reward.parts_higher_is_better for k in columns if k.startswith(f"{name}/")}
    return found


def _described(values: np.ndarray, better: bool | None, prompts: Sequence[object] | None) -> dict[str, Any]:
    """Distribution on either side; conflict and ties where there are pairs and a direction."""
    described: dict[str, Any] = {}
    for side, x in zip(("chosen", "rejected"), values, strict=True):
        x = x[~np.isnan(x)]
        quantiles = {f"{q:g}": float(v) for q, v in zip(QUANTILES, np.quantile(x, QUANTILES), strict=True)}
        described[side] = {"mean": float(x.mean()), "deviation": float(x.std()), "quantiles": quantiles}
    if prompts is None:
        return described
    margin = values[0] - values[1]
    described["ties"] = float((margin == 0).mean())
    if better is not None:
        wrong = (margin < 0) if better else (margin > 0)
        found = wilson(wrong.astype(float).tolist(), prompts)
        described["conflict"] = {"share": found.mean, "low": found.low, "high": found.high}
    return described


def rank_correlations(rows: np.ndarray) -> np.ndarray:
    """Spearman's correlations of C variables [C, R] as [C, C], over the columns without NaN; NaN beside a constant."""
    from scipy.stats import rankdata

    ranks = rankdata(rows[:, ~np.isnan(rows).any(axis=0)], axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.outer(norms, norms) > 0, ranks @ ranks.T / np.outer(norms, norms), math.nan)


def _plain(matrix: np.ndarray) -> list[list[float | None]]:
    """JSON has no NaN."""
    return [[None if math.isnan(x) else float(x) for x in row] for row in matrix]
