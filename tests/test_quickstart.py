"""The embedded default: what README claims over three seeds (nightly), and over one what UPO gains on its reference."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rotation import taking_turns

ROOT = Path(__file__).parent.parent
YAMLS = [f"experiments/quickstart/{name}.yaml" for name in ("quickstart", "quickstart_kto", "quickstart_upo_lambda0")]


@pytest.fixture(
    scope="module",
    params=[
        *taking_turns([pytest.param((YAMLS[:1], 1), id="UPO, one seed")], 4, pytest.mark.slow, pytest.mark.nightly),
        pytest.param((YAMLS, 3), id="three seeds", marks=pytest.mark.nightly),
    ],
)
def comparison(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """`upo.compare` trains UPO, and at night two other methods, from one SFT model."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    yamls, seeds = request.param
    command = [sys.executable, "-m", "upo.compare", *yamls, "--seeds", str(seeds), "--out", "compare"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(done.stdout[-6000:])
    return json.loads((folder / "compare" / "comparison.json").read_text())


UPO, KTO, LAMBDA0 = "quickstart", "quickstart_kto", "quickstart_upo_lambda0"


@pytest.mark.timeout(1800)
def test_upo_beats_its_reference_on_preference_and_objective(comparison: dict) -> None:
    """Paired by prompt: the whole 95 % interval above 0."""
    gain = comparison["minus_reference"][UPO]
    for figure in ("rewards/judge", "win_rate_vs_chosen", "objective", "rewards/safety"):
        assert gain[figure]["low"] > 0, (figure, gain[figure])


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("comparison", [(YAMLS, 3)], indirect=True, ids=["three seeds"])
def test_upo_beats_kto_and_lambda0_on_the_objective_and_says_what_it_costs(comparison: dict) -> None:
    for other in (KTO, LAMBDA0):
        against_upo = comparison["minus_baseline"][other]
        assert against_upo["objective"]["high"] < 0, (other, against_upo["objective"])
        assert "rewards/judge" in against_upo, "what UPO gives up in preference stands beside it"


@pytest.mark.timeout(1800)
def test_generated_text_stays_whole(comparison: dict) -> None:
    """Distinct-2, length and the share of valid sentences within 10 % of the reference's."""
    rows = {row["name"]: row["figures"] for row in comparison["rows"]}
    for figure in ("distinct_2", "tokens", "rewards/valid"):
        mine, start = rows[UPO][figure]["mean"], rows["reference"][figure]["mean"]
        assert abs(mine / start - 1) < 0.1, (figure, mine, start)
