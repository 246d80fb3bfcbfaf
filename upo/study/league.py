"""Leagues: a study of many methods at equal budget, whose strengths are halved by a rule that its file states.

    league:
      strengths: {model.optimizer.init_args.lr: [...]}             # a grid, for every entry of `runs`
      rank: {policy/win_rate_vs_reference: 1, policy/kl: -0.05}    # what is large is better
      rounds:
        - {seeds: [0], overrides: {trainer.max_steps: 10}, keep: 0.5}
        - {seeds: [0, 1, 2]}
      short: {runs: [dpo, kto], seeds: [0, 1, 2], strengths: {...}}

Each round is a study in a folder of its own: round1/, round2/ ... `rank` is a weighted sum of figures of a run's
evaluation; the strengths of each method that go on by it are written to the round's league.json and never chosen anew.
The short league is one study of some entries, without rounds.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from upo.errors import UserError, did_you_mean
from upo.runtime.run_folder import RunPaths
from upo.study.manifest import finished
from upo.study.plan import Planned, Study, expand, known

KEYS = ("strengths", "rank", "rounds", "short")
ROUND_KEYS = ("seeds", "overrides", "keep")
SHORT_KEYS = ("runs", "seeds", "strengths")


def short(content: Mapping[str, Any], file: Path) -> Study:
    """Some entries at some strengths, each with all seeds."""
    league = _league(content, file)
    own = league.get("short")
    if own is None:
        raise UserError(f"{file}: `league` has no `short`")
    known(own, SHORT_KEYS, f"{file}, `league.short`")
    names = [entry["name"] for entry in content["runs"]]
    for name in own.get("runs", names):
        if name not in names:
            raise UserError(f"{file}, `league.short`: no run `{name}`; {did_you_mean(name, names)}")
    entries = [entry for entry in content["runs"] if entry["name"] in own.get("runs", names)]
    more = {"folder": f"{content['folder']}/short", "seeds": own.get("seeds", content.get("seeds", [0]))}
    return _study(content | more, entries, own.get("strengths", league["strengths"]), file)


def rounds(content: Mapping[str, Any], file: Path) -> Iterator[Study]:
    """One study after the other; each wants the runs of the one before to be trained."""
    league = _league(content, file)
    if not league.get("rounds"):
        raise UserError(f"{file}: `league` has no `rounds`")
    every = []
    for number, own in enumerate(league["rounds"], start=1):
        known(own, ROUND_KEYS, f"{file}, round {number}")
        last = number == len(league["rounds"])
        if last != ("keep" not in own) or not (last or 0 < own["keep"] <= 1):
            raise UserError(f"{file}, round {number}: every round but the last has `keep`, a share in (0, 1]")
        more = {"folder": f"{content['folder']}/round{number}", "seeds": own.get("seeds", content.get("seeds", [0]))}
        more["overrides"] = (content.get("overrides") or {}) | (own.get("overrides") or {})
        every.append((_study(content | more, content["runs"], league["strengths"], file), own.get("keep")))
    names = {run.name for run in every[0][0].runs}
    for study, keep in every:
        study = evolve(study, runs=[run for run in study.runs if run.name in names])
        if study.baseline not in names:
            study = evolve(study, baseline=None)
        yield study
        if keep is not None:
            names = survivors(study, league["rank"], keep)


def survivors(study: Study, rank: Mapping[str, float], keep: float) -> set[str]:
    """Names of the best `keep` of each entry's strengths, at least one; those of an earlier call stay.

    Raises:
        UserError: an earlier call chose by another rule.
    """
    file = study.folder / "league.json"
    rule = {"rank": dict(rank), "keep": keep}
    if file.exists():
        before = json.loads(file.read_text())
        if before["rule"] != rule:
            raise UserError(f"{file} was written by another rule, {before['rule']}; delete it, or keep the rule")
        return set(before["kept"])
    runs: dict[str, list[Planned]] = {}
    entries: dict[str, list[str]] = {}
    for run in study.runs:
        runs.setdefault(run.name, []).append(run)
        entries.setdefault(run.entry, []).append(run.name)
    scores = {name: _score(own, rank) for name, own in runs.items()}
    kept = []
    for names in (list(dict.fromkeys(x)) for x in entries.values()):
        best = sorted(names, key=lambda name: -scores[name])[: math.ceil(keep * len(names))]
        kept += [name for name in best if scores[name] > -math.inf]
    plain = {name: None if score == -math.inf else score for name, score in scores.items()}
    file.write_text(json.dumps({"rule": rule, "scores": plain, "kept": kept}, indent=1) + "\n")
    return set(kept)


def _score(runs: Sequence[Planned], rank: Mapping[str, float]) -> float:
    """Mean over seeds of the weighted sum; minus infinity for a strength that failed or is not a number."""
    if not all(finished(run) for run in runs):
        return -math.inf
    total = 0.0
    for run in runs:
        metrics = json.loads(RunPaths(run.folder).evaluation.read_text())["metrics"]
        for name in rank:
            if name not in metrics:
                raise UserError(f"`league.rank`: no run measures `{name}`; {did_you_mean(name, list(metrics))}")
        total += sum(weight * metrics[name] for name, weight in rank.items()) / len(runs)
    return total if math.isfinite(total) else -math.inf


def _league(content: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    league = content["league"]
    known(league, KEYS, f"{file}, `league`")
    for key in ("strengths", "rank"):
        if not isinstance(league.get(key), dict) or not league[key]:
            raise UserError(f"{file}: `league` needs `{key}`, a mapping")
    return league


def _study(content: Mapping[str, Any], entries: Sequence[Any], strengths: Any, file: Path) -> Study:
    """The entries at all strengths."""
    if any("grid" in entry or "list" in entry for entry in entries):
        raise UserError(f"{file}: in a league strengths are those of `league`, for all runs; remove `grid` and `list`")
    runs = [dict(entry) | {"grid": strengths} for entry in entries]
    study = expand({key: x for key, x in content.items() if key != "league"} | {"runs": runs}, file)
    return evolve(study, only_numbers_differ=True)
