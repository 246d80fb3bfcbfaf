"""A tiny slice of the synthetic study: its own file and experiment, fewer pairs, steps and runs, no shared data."""

import json
from pathlib import Path

import pytest
import yaml

from upo.study.ablation import ablate

pytestmark = pytest.mark.turns(3)

ROOT = Path(__file__).parent.parent.parent
WORLD = {"name": "world", "options": {"n": 200, "seed": 7}}
SMALL = {"data.sources": [WORLD], "data.validation": 40, "data.tokens_cache": None, "trainer.accelerator": "cpu"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_slice_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SFT first, once; then four rows at one strength, one seed, two steps; a comparison with all of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPO_SHARED", "/nowhere")
    folder = tmp_path / "experiments" / "studies" / "synthetic"
    folder.mkdir(parents=True)
    (folder / "base.yaml").write_text((ROOT / folder.relative_to(tmp_path) / "base.yaml").read_text())
    study = yaml.safe_load((ROOT / folder.relative_to(tmp_path) / "study.yaml").read_text())
    stage = Path("experiments/quickstart/quickstart_sft.yaml")
    first = yaml.safe_load((ROOT / stage).read_text())
    first["data"] |= {"sources": [WORLD], "validation": 40, "tokens_cache": None}
    first["trainer"] |= {"max_steps": 4, "accelerator": "cpu"}
    stage.parent.mkdir()
    stage.write_text(yaml.safe_dump(first))
    study |= {"seeds": [0], "baseline": "upo", "overrides": SMALL | {
        "trainer.max_steps": 2, "evaluation.prompts": 10, "evaluation.max_new_tokens": 8, "data.rewards_cache": "cache",
    }}  # fmt: skip
    for entry in study["runs"]:
        assert entry.pop("grid") == {"model.optimizer.init_args.lr": [3e-5, 1e-4, 3e-4, 9e-4]}, "the same for all"
    study["runs"] = [entry for entry in study["runs"] if entry["name"] in ("kto", "upo", "csft", "kto_relabelled")]
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    assert ablate(file) == []
    content = json.loads(Path("runs/studies/synthetic/comparison.json").read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert rows.keys() == {"reference", *(entry["name"] for entry in study["runs"])}
    for name, row in rows.items():
        needed = {"objective", "win_rate_vs_chosen"} | ({"kl", "win_rate_vs_reference"} if row["method"] else set())
        assert needed <= row["figures"].keys(), name
    assert Path("runs/quickstart_sft/export").is_dir()
