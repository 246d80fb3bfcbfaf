"""Every experiment trains on its real data, and begins where its `Expected` line says. A twenty-first of them each day.

Not here: paper/ (a GPU), hardware/ (no experiments), and what reads pairs that a model writes first: stories/, which
tests/test_stories.py trains, and studies/.
"""

import re
from pathlib import Path

import pytest
import yaml
from rotation import taking_turns

from upo.callbacks.metrics_csv import read_metrics

ROOT = Path(__file__).parent.parent
ELSEWHERE = ("hardware", "paper", "stories")
YAMLS = [p for p in sorted((ROOT / "experiments").glob("*/*.yaml")) if p.parent.name not in ELSEWHERE]
SMOLLM2 = "${oc.env:UPO_SMOLLM2,HuggingFaceTB/SmolLM2-135M-Instruct}"
pytestmark = pytest.mark.usefixtures("shared")


def claim(text: str) -> tuple[str, float, float] | None:
    """The metric, its value and the last digit's unit, where a line begins with a loss at step 0."""
    found = re.match(r"# Expected: +(?:(preference )?loss(/preference)? )([\d,]*\.?\d+)[^;]*? at step 0", text)
    if found is None:
        return None
    number = found[3].replace(",", "")
    unit = 10.0 ** -len(number.partition(".")[2])
    return "train/loss/preference" if found[1] or found[2] else "train/loss", float(number), unit


def test_claims_are_read() -> None:
    assert claim("# Expected:  loss 0.6931 (log 2) at step 0, where") == ("train/loss", 0.6931, 1e-4)
    assert claim("# Expected:  preference loss .5 at step 0; held-out") == ("train/loss/preference", 0.5, 0.1)
    assert claim("# Expected:  loss 125,000.7 at step 0: 0.6931 and") == ("train/loss", 125000.7, 0.1)
    assert claim("# Expected:  loss below 25 at step 0: the mean") is None
    assert sum(claim(p.read_text().splitlines()[3]) is not None for p in YAMLS) > 55


@pytest.mark.parametrize(
    "path",
    taking_turns(
        (pytest.param(p, id=p.stem) for p in YAMLS), days=21, suite=pytest.mark.slow, rest=pytest.mark.nightly
    ),
)
def test_two_steps_on_the_real_data(path: Path, upo_fit, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    names = [path.name, *(yaml.safe_load(path.read_text()).get("after") or [])]
    for name in names:  # copies beside each other: an earlier stage takes two steps as well
        text = (path.parent / name).read_text()
        if SMOLLM2 in text:
            text = text.replace(SMOLLM2, request.getfixturevalue("smollm2"))
        content = yaml.safe_load(text)
        short = {"max_steps": 2, "limit_val_batches": 2, "enable_progress_bar": False}
        content["trainer"] |= short | {"accelerator": "cpu"}
        content.pop("evaluation", None)
        if "_a_lol" in name:  # V is fitted to all responses before the first step
            content["data"] |= {"sources": [s | {"limit": 700} for s in content["data"]["sources"]]}
        (tmp_path / name).write_text(yaml.safe_dump(content, sort_keys=False))
    done = upo_fit("--config", path.name)
    assert done.code == 0, done.text[-2000:]
    rows = [row for row in read_metrics(tmp_path / "runs" / path.stem / "metrics.csv") if "train/loss" in row]
    assert len(rows) == 2 and all(row["train/loss"] == row["train/loss"] for row in rows)
    if expected := claim(path.read_text().splitlines()[3]):
        name, value, unit = expected
        assert rows[0].get(name, rows[0]["train/loss"]) == pytest.approx(value, abs=unit)
