"""Leagues: which strengths go on, what is refused, and a small one run from end to end."""

import json
import re
from pathlib import Path

import pytest
import yaml
from test_ablate import here  # noqa: F401  a working directory with an experiment

import upo.methods
from upo.errors import UserError
from upo.study.ablation import ablate
from upo.study.league import rounds, short
from upo.study.plan import Study, load

pytestmark = pytest.mark.turns(3)

ROOT = Path(__file__).parent.parent.parent
STORIES = ROOT / "experiments" / "studies" / "stories"
LRS = [1e-4, 1e-3, 1e-2]
LEAGUE = {
    "strengths": {"model.optimizer.lr": LRS},
    "rank": {"policy/objective": 1, "policy/kl": -0.5},
    "rounds": [{"seeds": [0], "overrides": {"trainer.max_steps": 1}, "keep": 0.5}, {"seeds": [0, 1]}],
    "short": {"runs": ["b"], "seeds": [5], "strengths": {"model.optimizer.lr": [1e-3]}},
}


def write(league: dict | None = None, **content: object) -> tuple[dict, Path]:
    path = Path("exp/league.yaml")
    runs = [{"name": name, "config": "dpo.yaml", "overrides": {"model.class_path": kind}} for name, kind in
            (("a", "DPO"), ("b", "IPO"))]  # fmt: skip
    plain = {"folder": "runs/l", "runs": runs, "league": LEAGUE | (league or {})} | content
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return load(path), path


def finish(study: Study, figures: dict[str, tuple[float, float]]) -> None:
    """Writes the evaluations of the runs that are named, as (objective, KL)."""
    for run in study.runs:
        if run.name in figures:
            run.folder.mkdir(parents=True)
            objective, kl = figures[run.name]
            metrics = {"policy/objective": objective, "policy/kl": kl}
            (run.folder / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
            (run.folder / "summary.json").write_text("{}")


def names(study: Study) -> list[str]:
    return list(dict.fromkeys(run.name for run in study.runs))


def test_the_better_half_of_each_method_goes_on(here) -> None:  # noqa: F811
    """Objective minus half a KL; 2 of 3 are kept of each method, failures and NaN never."""
    content, file = write()
    played = rounds(content, file)
    first = next(played)
    assert [run.label for run in first.runs] == [f"{m}_lr{lr}_seed0" for m in "ab" for lr in LRS]
    assert str(first.folder) == "runs/l/round1" and first.runs[0].config["trainer"]["max_steps"] == 1
    finish(first, {
        "a_lr0.0001": (0.5, 0.0), "a_lr0.001": (0.9, 1.0), "a_lr0.01": (5.0, 9.0),  # 0.5, 0.4, 0.5
        "b_lr0.0001": (0.1, 0.0), "b_lr0.001": (float("nan"), 0.0),
    })  # fmt: skip
    second = next(played)
    assert set(names(second)) == {"a_lr0.0001", "a_lr0.01", "b_lr0.0001"}
    assert [run.seed for run in second.runs[:2]] == [0, 1] and second.runs[0].config["trainer"]["max_steps"] == 2
    choice = json.loads((first.folder / "league.json").read_text())
    assert choice["scores"]["a_lr0.001"] == pytest.approx(0.4) and choice["scores"]["b_lr0.01"] is None
    assert list(played) == []


def test_a_choice_stays_and_its_rule_too(here) -> None:  # noqa: F811
    content, file = write()
    played = rounds(content, file)
    first = next(played)
    finish(first, {run.name: (1.0, float(i)) for i, run in enumerate(first.runs)})
    kept = names(next(played))
    for run in first.runs:
        (run.folder / "summary.json").unlink()
    again = rounds(content, file)
    next(again)
    assert names(next(again)) == kept
    content, file = write({"rank": {"policy/objective": 1}})
    other = rounds(content, file)
    next(other)
    with pytest.raises(UserError, match="written by another rule"):
        next(other)


def test_the_short_league_is_one_study_of_some_methods(here) -> None:  # noqa: F811
    study = short(*write())
    assert [run.label for run in study.runs] == ["b_lr0.001_seed5"]
    assert str(study.folder) == "runs/l/short" and study.runs[0].config["trainer"]["max_steps"] == 2


@pytest.mark.parametrize(
    ("league", "words"),
    [
        ({"rank": {}}, "needs `rank`"), ({"strength": 1}, "did you mean `strengths`"),
        ({"rounds": [{"seeds": [0]}, {"seeds": [1]}]}, "every round but the last has `keep`"),
        ({"rounds": [{"keep": 2}, {}]}, "share in"), ({"rounds": [{"keep": 0.5}]}, "every round but the last"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(here, league: dict, words: str) -> None:  # noqa: F811
    with pytest.raises(UserError, match=re.escape(words)):
        ablate(write(league)[1], dry_run=True)
    assert not Path("runs").exists()


def test_more_mistakes_are_refused(here) -> None:  # noqa: F811
    _, file = write(runs=[{"name": "a", "config": "dpo.yaml", "grid": {"model.beta": [1]}}])
    with pytest.raises(UserError, match="remove `grid`"):
        ablate(file, dry_run=True)
    _, file = write({"short": {"runs": ["c"]}})
    with pytest.raises(UserError, match="trained whole"):
        ablate(file, dry_run=True, only=["a"])
    with pytest.raises(UserError, match="no run `c`"):
        ablate(file, dry_run=True, short=True)
    content, file = write({"rank": {"policy/objectiv": 1}})
    played = rounds(content, file)
    finish(next(played), {"a_lr0.0001": (1.0, 0.0)})
    with pytest.raises(UserError, match="did you mean `policy/objective`"):
        next(played)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_small_league_from_end_to_end(here, capfd) -> None:  # noqa: F811
    """Two methods, two strengths, of which one stays; a second call trains nothing; the note stands on top."""
    rounds = [LEAGUE["rounds"][0], {"seeds": [0]}]
    _, file = write(
        {"strengths": {"model.optimizer.lr": LRS[:2]}, "rounds": rounds}, compare={"note": "It ranks little."}
    )
    assert ablate(file, jobs=2) == []
    first, second = (json.loads(Path(f"runs/l/round{n}/manifest.json").read_text())["runs"] for n in (1, 2))
    kept = json.loads(Path("runs/l/round1/league.json").read_text())["kept"]
    assert len(first) == 4 and sorted(name[0] for name in kept) == ["a", "b"]
    assert [row["name"] for row in second] == [name for name in (row["name"] for row in first) if name in kept]
    assert {row["status"] for row in (*first, *second)} == {"finished"}
    lines = Path("runs/l/round2/comparison.md").read_text().splitlines()
    assert lines.index("It ranks little.") < next(i for i, line in enumerate(lines) if line.startswith("|"))
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if "_seed" in str(p)}
    assert ablate(file) == []
    assert before == {p: p.stat().st_mtime_ns for p in before}


# ---- the one that is meant -------------------------------------------------------------------------------------------


def test_every_method_of_its_day_is_in_the_league_or_named_as_left_out() -> None:
    content = load(STORIES / "all_offline.yaml")
    base = yaml.safe_load((STORIES / "base.yaml").read_text())["model"]["class_path"]
    inside = {run.get("overrides", {}).get("model.class_path", base) for run in content["runs"]}
    section = (STORIES / "README.md").read_text().partition("## League")[2].partition("\n## ")[0]
    left_out = set(re.findall(r"`(\w+)`", section.partition("Left out")[2].partition("\n\n")[0]))
    assert inside | left_out <= set(upo.methods.__all__) and not inside & left_out
    assert len(inside | left_out) == int(re.search(r"of the (\d+) that there were", section)[1])
    assert len(content["league"]["short"]["runs"]) == 12
    assert content["compare"]["note"] in section
