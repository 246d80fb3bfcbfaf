"""Samples every N steps: the same training, each step once after a resume, and tables in loggers that show them."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from test_generation_metrics import CONFIG

from upo.cli.main import main as fit

TABLE = {
    "class_path": "upo.callbacks.sample_table.SampleTable",
    "init_args": {"every_n_steps": 2, "prompts": 3, "max_new_tokens": 4},
}


def run(name: str, callbacks: list, *args: str) -> Path:
    """A run of four steps."""
    trainer = CONFIG["trainer"] | {"callbacks": callbacks, "default_root_dir": name, "val_check_interval": 4}
    plain = {"model": CONFIG["model"], "data": CONFIG["data"], "trainer": trainer}
    Path("plain.yaml").write_text(yaml.safe_dump(plain | {"checkpoint": {"every_n_train_steps": 2, "save_top_k": -1}}))
    fit(["--config", "plain.yaml", *args])
    return Path(name)


@pytest.mark.turns(2)
def test_samples_of_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logged = []
    monkeypatch.setattr("upo.callbacks.sample_table.log_table", lambda *given: logged.append(given[1:]))
    table = run("table", [TABLE])
    text = (table / "training_samples.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["step"] for row in rows] == [2, 2, 2, 4, 4, 4]
    assert [row["prompt"] for row in rows[:3]] == [row["prompt"] for row in rows[3:]], "the same prompts each time"
    for row in rows:
        assert row["rewards/length"] == len(row["response"].split()) == row["words"]
    same = [[{name: x for name, x in row.items() if name != "step"} for row in part] for part in (rows[:3], rows[3:])]
    assert logged == [("train/samples", same[0], 1), ("train/samples", same[1], 3)], "beside the metrics of the step"

    plain = run("plain", [])
    ends = [torch.load(folder / "checkpoints/step=4.ckpt", weights_only=True) for folder in (table, plain)]
    for name, x in ends[0]["state_dict"].items():
        assert torch.equal(x, ends[1]["state_dict"][name]), name

    (table / "summary.json").unlink()
    (table / "checkpoints/last.ckpt").unlink()
    (table / "checkpoints/step=4.ckpt").unlink()
    run("table", [TABLE], "--ckpt_path", "last")
    assert (table / "training_samples.jsonl").read_text() == text, "the lines of step 4 once, and the same"
