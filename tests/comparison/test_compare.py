"""Comparison of run folders: grouping, pairing, errors."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from upo.compare import main
from upo.comparison import grouped, read_run
from upo.comparison.compare import compare
from upo.study import tasks

SETTINGS = {"judge": "Sentiment 1", "max_new_tokens": 16, "seed": 0}


def run_folder(
    folder: Path, method: str, seed: int, shift: float, beta: float = 0.1, reference: float = 0.4, **settings
) -> Path:
    """A finished run whose objective lies `shift` above hard and easy prompts; prompts are its seed's own."""
    config = {
        "seed_everything": seed,
        "model": {"class_path": f"upo.methods.{method}", "init_args": {"beta": beta}},
        "data": {"sources": [{"name": "hh"}], "seed": seed},
        "trainer": {"max_epochs": 1, "default_root_dir": str(folder)},
        "evaluation": {"samples": seed},
    }
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=60)  # the same for all methods
    rows = [
        {
            "prompt": f"{seed}: {i}",
            "policy": {
                "objective": x + shift + 0.05 * y,
                "rewards/plain": x,
                "win_rate_vs_reference": float(y > -shift),
                "kl": 3 * shift + 0.1 * y,
                "tokens": 20.0,
            },
            "reference": {"objective": x + reference, "tokens": 20.0},
        }
        for i, (x, y) in enumerate(zip(ease, rng.normal(size=60), strict=True))
    ]
    pairs = [{"prompt": f"{seed}: {i}", "rewards/accuracies": float(i % 3 > 0)} for i in range(60)]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "summary.json").write_text("{}")
    content = {
        "settings": SETTINGS | settings,
        "prompts": rows,
        "pairs": pairs,
        "metrics": {"policy/distinct_2": 0.4},
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    shifts = {"UPO": 0.5, "KTO": 0.3}
    return [
        run_folder(tmp_path / f"x_{method.lower()}_seed{seed}", method, seed, shift + 0.01 * seed)
        for method, shift in shifts.items()
        for seed in range(3)
    ]


def test_runs_that_differ_in_their_seed_are_one_row(runs: list[Path], tmp_path: Path) -> None:
    other = run_folder(tmp_path / "other", "UPO", 0, 0.5, beta=0.2)
    groups = grouped([read_run(run) for run in [*runs, other]])
    assert [(g.name, g.method, g.seeds) for g in groups] == [
        ("x_upo", "UPO", [0, 1, 2]),
        ("x_kto", "KTO", [0, 1, 2]),
        ("other", "UPO", [0]),
    ]


def test_differences_are_paired_by_prompt_and_seed(runs: list[Path], tmp_path: Path) -> None:
    content = compare(runs)
    assert content["baseline"] == "x_upo"
    found = content["minus_baseline"]["x_kto"]["objective"]
    assert found["mean"] == pytest.approx(-0.2)
    assert found["low"] == pytest.approx(found["high"])  # prompt by prompt and seed by seed it is the same
    row = content["rows"][1]["figures"]["objective"]
    assert row["high"] - row["low"] > 0.2  # though prompts differ much
    own = content["minus_reference"]["x_upo"]["objective"]
    assert 0.05 < own["low"] < own["mean"] < own["high"] < 0.2
    assert content["rows"][0]["name"] == "reference" and "kl" not in content["rows"][0]["figures"]
    accuracy = content["rows"][1]["figures"]["val/rewards/accuracies"]
    assert accuracy["mean"] == pytest.approx(2 / 3) and accuracy["n"] == 180
    assert json.loads((tmp_path / "comparison.json").read_text()) == content
    assert (tmp_path / "comparison.png").stat().st_size > 5000


def test_without_a_common_seed_prompts_still_pair(tmp_path: Path) -> None:
    first, second = (run_folder(tmp_path / name, "DPO", 1, 0.5, beta=b) for name, b in (("a", 0.1), ("b", 0.2)))
    config = json.loads((second / "config.yaml").read_text()) | {"seed_everything": 7}
    (second / "config.yaml").write_text(json.dumps(config))
    found = compare([first, second])["minus_baseline"]["b"]["objective"]
    assert (found["mean"], found["n"]) == (0, 60)


def test_runs_without_a_common_prompt_get_a_note_and_no_table(tmp_path: Path, capsys) -> None:
    first, second = (run_folder(tmp_path / name, "DPO", 1, 0.5, beta=b) for name, b in (("a", 0.1), ("b", 0.2)))
    evaluation = json.loads((second / "evaluation.json").read_text())
    for row in (*evaluation["prompts"], *evaluation["pairs"]):
        row["prompt"] += " of others"
    (second / "evaluation.json").write_text(json.dumps(evaluation))
    content = compare([first, second])
    assert content["minus_baseline"] == {"b": {}}
    printed = capsys.readouterr()
    assert "No difference from a for b: they share no evaluated prompt" in printed.err
    assert "minus a," not in printed.out and "## Minus a" not in (tmp_path / "comparison.md").read_text()


def test_the_table_shows_the_trade_side_by_side(runs: list[Path], tmp_path: Path, capsys) -> None:
    main([*map(str, runs), "--baseline", str(runs[3]), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    traded = ("win vs reference", "objective", "KL, nats")
    places = [next(i for i, x in enumerate(lines) if name in x) for name in traded]
    assert places == list(range(places[0], places[0] + 3))
    assert any("minus x_kto" in line for line in lines)
    assert "0.200 ±0.000*" in [x for x in lines if "objective" in x][-1]
    files = {f"comparison.{end}" for end in ("json", "md", "html", "png")}
    assert {p.name for p in (tmp_path / "out").iterdir()} == files
    main([str(p) for p in sorted((tmp_path / "out").iterdir())] + [*map(str, runs), "--out", str(tmp_path / "out")])


def test_unlike_evaluations_are_pointed_out(runs: list[Path], tmp_path: Path, capsys) -> None:
    compare([*runs, run_folder(tmp_path / "y", "DPO", 0, 0.1, max_new_tokens=99)])
    assert "evaluated with different max_new_tokens" in capsys.readouterr().err


def test_errors_say_what_to_do(runs: list[Path], tmp_path: Path, capsys) -> None:
    def error(*args) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in args])
        assert end.value.code == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ") and len(text.splitlines()) <= 3
        return text

    assert "is no run folder" in error(tmp_path)
    assert "the same run with the same seed" in error(runs[0], runs[0])
    assert "is none of the runs" in error(runs[0], "--baseline", runs[3])
    assert "no such experiment" in error("none.yaml")
    (tmp_path / "bad.yaml").write_text("model: {class_path: DPO\n\tdata: {}\n")
    assert "bad.yaml, line 2 is no valid YAML" in error(tmp_path / "bad.yaml")
    (runs[1] / "evaluation.json").unlink()
    assert f"python -m upo.evaluate {runs[1]}" in error(runs[1])
    (runs[1] / "summary.json").unlink()
    assert "--ckpt_path last" in error(runs[1])
    assert "runs" in error()


def test_experiments_are_trained_where_missing(tmp_path: Path, monkeypatch) -> None:
    """Each seed once; a started run is continued, a finished one left alone, a shared stage trained first and once."""
    monkeypatch.chdir(tmp_path)
    for name in ("x", "y"):
        Path(f"{name}.yaml").write_text(f"after: [first.yaml]\ntrainer: {{default_root_dir: runs/{name}}}\n")
    Path("first.yaml").write_text("trainer: {default_root_dir: runs/first}\n")
    run_folder(Path("runs/x_seed0"), "UPO", 0, 0.5)
    Path("runs/x_seed1/checkpoints").mkdir(parents=True)
    Path("runs/x_seed1/checkpoints/step=1.ckpt").write_text("")
    calls, jobs_given = [], []

    def fit(args):
        calls.append(args)
        folder = Path(args[args.index("--trainer.default_root_dir") + 1])
        method = "UPO" if "x_" in folder.name else "KTO"
        run_folder(Path("made") / folder.name, method, int(folder.name[-1]), 0.5)
        folder.mkdir(exist_ok=True)
        for file in (Path("made") / folder.name).iterdir():
            file.rename(folder / file.name)

    def run_tasks(queue, jobs, begun, ended):
        jobs_given.append(jobs)
        for task in queue:
            begun(task)
            task.function(*task.args)
            ended(task, 0, 1.0)

    monkeypatch.setattr("upo.study.tasks.fit", fit)
    monkeypatch.setattr("upo.study.tasks.stage", lambda *args: calls.append(args))
    monkeypatch.setattr("upo.study.experiments.run_tasks", run_tasks)
    content = compare([Path("x.yaml"), Path("y.yaml")], seeds=2, jobs=2)
    options = ["--seed_everything", "1", "--trainer.default_root_dir"]
    assert calls == [
        (Path("first.yaml"), Path("runs/first")),
        ["--config", "x.yaml", *options, "runs/x_seed1", "--ckpt_path", "last"],
        ["--config", "y.yaml", *options[:1], "0", *options[2:], "runs/y_seed0"],
        ["--config", "y.yaml", *options, "runs/y_seed1"],
    ]
    assert jobs_given == [1, 2]
    assert [row["seeds"] for row in content["rows"]] == [[], [0, 1], [0, 1]]


def test_a_run_that_fails_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    """What it said itself goes where the fork server's output goes."""
    monkeypatch.chdir(tmp_path)
    rest = "model: {class_path: SFT, init_args: {policy: {path: p}}}\ndata: {sources: [{name: world}]}\n"
    Path("x.yaml").write_text("after: [nowhere.yaml]\n" + rest)
    with pytest.raises(SystemExit) as end:
        main(["x.yaml"])
    assert end.value.code == 2
    assert "x.yaml with seed 0 failed (exit code 2)" in capsys.readouterr().err


def test_ranks_are_started_by_the_command_of_the_run(monkeypatch) -> None:
    """Lightning starts further ranks by the command that it believes to run, which in a forked process is another."""
    from lightning.fabric.strategies.launchers.subprocess_script import _basic_subprocess_cmd

    import __main__

    monkeypatch.setattr(__main__, "__spec__", None)
    monkeypatch.setattr(sys, "argv", ["upo.ablate"])
    found = []
    monkeypatch.setattr("upo.cli.main.main", lambda _: found.append(list(_basic_subprocess_cmd())))
    tasks.train(Path("x.yaml"), Path("none"), ["--seed_everything", "3"])
    assert found == [[sys.executable, "-m", "upo.fit", "--config", "x.yaml", "--seed_everything", "3"]]
