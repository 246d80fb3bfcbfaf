"""An evaluation reaches the run's own W&B run, without an account."""

import json
from pathlib import Path

import pytest
import wandb
import yaml
from wandb_files import records

from upo.cli.main import main
from upo.evaluate import main as evaluate

CONFIG = """
model:
  class_path: SFT
  init_args:
    policy: {path: "${oc.env:UPO_SHARED}/models/stories260k"}
data:
  sources:
    - {name: hh, path: Anthropic/hh-rlhf, local: "${oc.env:UPO_SHARED}/data/hh", limit: 40}
  validation: 8
  max_length: 200
  overlong: [truncate_prompt_left, truncate_response]
  pairs_per_step: 8
trainer:
  max_steps: 2
  accelerator: cpu
  enable_progress_bar: false
  logger: {class_path: lightning.pytorch.loggers.WandbLogger, init_args: {project: test, save_dir: .}}
evaluation: {prompts: 4, max_new_tokens: 8, judge: Sentiment}
"""


@pytest.mark.slow
def test_figures_samples_and_report_are_in_the_offline_run(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))
    monkeypatch.setenv("UPO_SHARED", str(shared))
    monkeypatch.chdir(tmp_path)
    Path("sft.yaml").write_text(yaml.safe_dump(yaml.safe_load(CONFIG)))
    main(["--config", "sft.yaml"])
    run = Path("runs/sft")
    run_id = (run / "wandb_id.txt").read_text()
    (first,) = Path("wandb").glob(f"offline-run-*-{run_id}")
    check(first, run)
    evaluate([str(run), "--prompts", "3"])
    assert wandb.run is None, "the run is closed"
    (second,) = set(Path("wandb").glob(f"offline-run-*-{run_id}")) - {first}
    assert check(second, run) == 3


def check(folder: Path, run: Path) -> int:
    """Report, picture, samples and figures of the last evaluation; returns the number of samples."""
    media = folder / "files" / "media"
    (report,) = media.glob("html/evaluation/report_*.html")
    assert report.read_text() == (run / "report.html").read_text()
    assert list(media.glob("images/evaluation/picture_*.png"))
    (table,) = media.glob("table/evaluation/samples_*.json")
    content = json.loads(table.read_text())
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert content["columns"][:3] == ["prompt", "policy", "chosen"]
    assert [row[1:3] for row in content["data"]] == [[line["policy"], line["chosen"]] for line in lines]
    figures = json.loads((run / "evaluation.json").read_text())["metrics"]
    (file,) = folder.glob("*.wandb")
    written = records(file)
    assert not [name for name in figures if name.encode() not in written]
    return len(lines)
