"""Experiments that moved into folders: old paths get a hint, and what was made with them goes on."""

from pathlib import Path

import pytest
import yaml

from upo.cli.stages import beside
from upo.comparison.settings import settings_of
from upo.errors import UserError
from upo.fit import main
from upo.runtime.moved import file_below, no_such_file
from upo.study.ablation import ablate

BASE = """
after: [{after}]
model: {{class_path: DPO}}
trainer: {{max_steps: 2}}
"""


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose experiments lie in folders."""
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart/first", "quickstart/twice", "hh/twice", "quickstart/base"):
        (path := Path("experiments", f"{name}.yaml")).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(BASE.format(after="first.yaml"))
    return Path("experiments")


def test_only_a_missing_file_with_one_namesake_is_found(experiments: Path) -> None:
    there = experiments / "quickstart/first.yaml"
    assert file_below(experiments / "first.yaml") == there
    assert no_such_file(experiments / "first.yaml") == f"experiments/first.yaml; did you mean {there}?"
    for path in (there, experiments / "twice.yaml", experiments / "nowhere.yaml"):
        assert file_below(path) is None and no_such_file(path) == str(path)


def test_an_old_path_says_where_the_experiment_is(experiments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--config", "experiments/first.yaml"])
    text = capsys.readouterr().err
    assert (
        text
        == "error: --config: no such file experiments/first.yaml; did you mean experiments/quickstart/first.yaml?\n"
    )


def test_an_earlier_stage_is_found_by_its_old_path(experiments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = experiments / "quickstart/first.yaml"
    assert beside("first.yaml", [experiments / "quickstart/base.yaml"]) == there
    assert beside(str(there), [Path("runs/x.yaml")]) == there
    assert not capsys.readouterr().err
    for path, config in (("experiments/first.yaml", "runs/x.yaml"), ("../experiments/first.yaml", "mine/x.yaml")):
        Path(config).parent.mkdir(exist_ok=True)
        assert beside(path, [Path(config)]).resolve() == there.resolve()
        assert f"after: {path} has moved to" in capsys.readouterr().err
    assert beside("experiments/twice.yaml", [Path("runs/x.yaml")]) == Path("experiments/twice.yaml")


def test_a_study_from_before_the_move_is_kept(experiments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs name the earlier stage by its old path; other settings are refused as ever."""
    monkeypatch.setattr("upo.study.ablation._compare", lambda study: None)
    file = experiments / "study.yaml"
    file.write_text(yaml.safe_dump({"folder": "runs/s", "runs": [{"name": "a", "config": "quickstart/base.yaml"}]}))
    run = {"model": {"class_path": "DPO"}, "seed_everything": 0}
    run |= {"after": ["experiments/first.yaml"], "trainer": {"max_steps": 2, "default_root_dir": "runs/s/a_seed0"}}
    Path("runs/s/a_seed0").mkdir(parents=True)
    Path("runs/s/a_seed0/summary.json").write_text("{}")
    Path("runs/s/a_seed0/evaluation.json").write_text("{}")
    (old := Path("runs/s/configs/a_seed0.yaml")).parent.mkdir()
    old.write_text(yaml.safe_dump(run))
    assert ablate(file) == []
    for other in ({"after": ["experiments/second.yaml"]}, {"model": {"class_path": "IPO"}}):
        old.write_text(yaml.safe_dump(run | other))
        with pytest.raises(UserError, match="other settings"):
            ablate(file)


def test_runs_of_before_and_after_the_move_are_seeds_of_one_row() -> None:
    first, second, third = (
        settings_of({"model": {}, "data": {}, "trainer": {}, "after": [after]})
        for after in ("experiments/first.yaml", "experiments/quickstart/first.yaml", "experiments/second.yaml")
    )
    assert first == second != third
