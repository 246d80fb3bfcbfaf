"""Who is preferred: a judge's verdicts prompt by prompt, and the win rates that follow from them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import asdict

from upo.data.example import Example, prompt_key
from upo.evaluation.kept import Kept
from upo.judges.base import Judge, Verdict
from upo.metrics.intervals import bootstrap
from upo.metrics.length_control import length_controlled

MATCHES = (("policy", "chosen"), ("reference", "chosen"), ("policy", "reference"), ("policy", "rival"))
CHUNK = 64
"""Verdicts between two writes to the disk."""


def by_reward(values: Mapping[str, list[dict[str, float]]]) -> None:
    """Adds who wins where the judge is a reward: the higher value of `rewards/judge`."""
    for name, other in MATCHES:
        if name in values and other in values:
            for own, theirs in zip(values[name], values[other], strict=True):
                margin = own["rewards/judge"] - theirs["rewards/judge"]
                _add(own, other, Verdict(0.5 if margin == 0 else float(margin > 0)))


def by_judge(
    judge: Judge,
    asked: Sequence[Example],
    texts: Mapping[str, list[str]],
    values: Mapping[str, list[dict[str, float]]],
    partial: Path,
) -> None:
    """Adds who wins by a judge that reads both texts, and where it could not be read or depended on the order.

    Args:
        partial: file that keeps verdicts while an evaluation is not finished.
    """
    from tqdm import tqdm

    kept = Kept(partial, judge.fingerprint())
    for name, other in MATCHES:
        if name not in texts or other not in texts:
            continue
        keys = [_key(example, a, b) for example, a, b in zip(asked, texts[name], texts[other], strict=True)]
        bar = tqdm(total=len(keys), desc=f"{name} against {other}", unit="prompt", leave=False, disable=None)
        with bar:
            for start in range(0, len(keys), CHUNK):
                places = range(start, min(start + CHUNK, len(keys)))
                if not all(keys[i] in kept for i in places):
                    verdicts = judge(
                        [asked[i].prompt for i in places],
                        [texts[name][i] for i in places],
                        [texts[other][i] for i in places],
                    )
                    kept.update({keys[i]: asdict(v) for i, v in zip(places, verdicts, strict=True)})
                bar.update(len(places))
        for key, own in zip(keys, values[name], strict=True):
            verdict = Verdict(**kept[key])
            _add(own, other, verdict)
            own[f"unparsed_vs_{other}"] = float(verdict.win is None)
            if verdict.win is not None:
                own[f"order_flips_vs_{other}"] = float(verdict.flipped)


def _key(example: Example, first: str, second: str) -> str:
    parts = "\0".join((prompt_key(example.prompt), first, second))
    return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()


def _add(own: dict[str, float], other: str, verdict: Verdict) -> None:
    if verdict.win is not None:
        own |= {f"win_rate_vs_{other}": verdict.win, f"ties_vs_{other}": float(verdict.win == 0.5)}


def win_figures(values: Mapping[str, list[dict[str, float]]]) -> dict[str, float]:
    """Beside Wilson's interval of each win rate: the bootstrap's, and the win rate with length held equal."""
    figures: dict[str, float] = {}
    for name, other in MATCHES:
        rows = values.get(name, [])
        judged = [i for i, row in enumerate(rows) if f"win_rate_vs_{other}" in row]
        if not judged:
            continue
        wins = [rows[i][f"win_rate_vs_{other}"] for i in judged]
        interval = bootstrap(wins)
        figures[f"{name}/win_rate_vs_{other}_bootstrap_low"] = interval.low
        figures[f"{name}/win_rate_vs_{other}_bootstrap_high"] = interval.high
        words = [rows[i]["words"] for i in judged]
        theirs = [values[other][i]["words"] for i in judged]
        if (controlled := length_controlled(wins, words, theirs)) is not None:
            figures |= controlled.named(f"{name}/lc_win_rate_vs_{other}")
    return figures
