"""Learning generalises: pairs that the real small model writes itself, labelled by a measurable taste. Run by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def summaries(tmp_path_factory: pytest.TempPathFactory, stories260k: str) -> dict[str, dict[str, float]]:
    """README's commands: the preference set, then DPO, KTO and UPO on it; their summary.json."""
    folder = tmp_path_factory.mktemp("stories")
    env = os.environ | {"UPO_SHARED": str(Path(stories260k).parent.parent)}

    def command(*args: str) -> None:
        done = subprocess.run([sys.executable, "-m", *args], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    options = "--self_prompts 4500 --prompt_tokens 20 --responses 4 --max_new_tokens 40 --margin 0.1 --judge Sentiment"
    command("upo.generate", "--model", stories260k, *options.split(), "--out", "runs/stories/pairs.jsonl")
    for name in ("dpo", "kto", "upo"):
        command("upo.fit", "--config", str(ROOT / "experiments" / "stories" / f"stories_{name}.yaml"))
    return {
        name: json.loads((folder / "runs" / f"stories_{name}" / "summary.json").read_text())
        for name in ("dpo", "kto", "upo")
    }


@pytest.mark.parametrize(("name", "bound"), [("dpo", 0.75), ("kto", 0.75), ("upo", 0.55)])
def test_held_out_reward_accuracy(name: str, bound: float, summaries: dict) -> None:
    """On at least 1,000 held-out pairs the whole 95 % interval is above the bound."""
    summary = summaries[name]
    assert summary["val/rewards/accuracies_n"] >= 1000
    assert summary["val/rewards/accuracies_low"] > bound


@pytest.mark.parametrize("name", ["dpo", "kto", "upo"])
def test_the_taste_rises(name: str, summaries: dict) -> None:
    assert summaries[name]["policy/win_rate_vs_reference_low"] > 0.5


def test_only_upo_raises_the_objective(summaries: dict) -> None:
    upo = summaries["upo"]
    assert upo["policy/objective_low"] > upo["reference/objective"]
    for name in ("dpo", "kto"):
        assert summaries[name]["policy/objective_high"] < upo["policy/objective_low"]


def test_the_value_head_explains_part_of_the_reward(summaries: dict) -> None:
    assert summaries["upo"]["val/value/explained_variance"] > 0.02
