"""Who is preferred by a judge that reads both texts: every verdict kept when it comes, what is missing counted."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attrs import asdict, frozen

from upo.data.example import Example, prompt_key
from upo.evaluation.kept import Kept
from upo.evaluation.win_rates import add_verdict, matches
from upo.judges.base import Judge, Verdict

ENOUGH = 8
"""Pairs that a judge has been asked about, before it is said that it always gives the same answer."""


@frozen
class Comparison:
    """A prompt with the texts of two systems."""

    example: Example
    first: str
    second: str

    @property
    def key(self) -> str:
        """Changes with the prompt and either text."""
        parts = "\0".join((prompt_key(self.example.prompt), self.first, self.second))
        return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()


def by_judge(
    judge: Judge,
    asked: Sequence[Example],
    texts: Mapping[str, list[str]],
    values: Mapping[str, list[dict[str, float]]],
    partial: Path,
) -> list[str]:
    """Adds who wins, what was not judged or could not be read, and what the place of a response did to the answers.

    Args:
        partial: file that keeps verdicts while an evaluation is not finished, for a judge without a file of its own.

    Returns:
        What a reader of these figures has to know, in sentences: why pairs were not judged, and whether the judge says
        the same about all of them.
    """
    pairs = {
        match: [Comparison(*three) for three in zip(asked, texts[match[0]], texts[match[1]], strict=True)]
        for match in matches(texts)
    }
    verdicts = _verdicts(judge, [pair for own in pairs.values() for pair in own], judge.kept_in or partial)
    remarks: list[str] = []
    for (name, other), own in pairs.items():
        found = [verdicts[pair.key] for pair in own]
        for verdict, row in zip(found, values[name], strict=True):
            _add(row, other, verdict)
        remarks += (f"{name} against {other}: {remark}" for remark in _remarks(found))
    return remarks


def _verdicts(judge: Judge, pairs: Sequence[Comparison], file: Path) -> dict[str, Verdict]:
    """By key; the judge is asked once about equal pairs, and not about those that the file knows."""
    from tqdm import tqdm

    kept = Kept(file, judge.fingerprint())
    new = [pair for key, pair in {pair.key: pair for pair in pairs}.items() if key not in kept]
    question = [pair.example.prompt for pair in new], [pair.first for pair in new], [pair.second for pair in new]
    if notice := judge.notice(*question):
        print(notice)
    passing: dict[str, Verdict] = {}
    for i, verdict in tqdm(judge.each(*question), total=len(new), desc="judge", unit="pair", leave=False, disable=None):
        if verdict.again:
            passing[new[i].key] = verdict
        else:
            kept[new[i].key] = asdict(verdict)
    return passing | {pair.key: Verdict(**kept[pair.key]) for pair in pairs if pair.key in kept}


def _add(row: dict[str, float], other: str, verdict: Verdict) -> None:
    add_verdict(row, other, verdict)
    row[f"unjudged_vs_{other}"] = float(verdict.unjudged is not None)
    row[f"unparsed_vs_{other}"] = float(verdict.win is None and verdict.unjudged is None)
    if verdict.win is not None:
        row[f"order_flips_vs_{other}"] = float(verdict.flipped)
    if verdict.first_place is not None:
        row[f"first_place_vs_{other}"] = verdict.first_place


def _remarks(verdicts: Sequence[Verdict]) -> Iterator[str]:
    reasons = Counter(verdict.unjudged for verdict in verdicts if verdict.unjudged is not None)
    if reasons:
        told = "; ".join(f"{n} times {reason}" for reason, n in reasons.most_common())
        yield f"{reasons.total()} of {len(verdicts)} pairs were not judged ({told})"
    places = [verdict.first_place for verdict in verdicts if verdict.first_place is not None]
    for place, name in ((1.0, "A"), (0.0, "B")):
        if len(places) >= ENOUGH and all(x == place for x in places):
            yield (
                f"the judge always answers {name}, whichever response stands there: it says nothing about them "
                f"({len(places)} pairs in both orders)"
            )
