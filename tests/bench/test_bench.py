"""The bench counts work correctly, gives both contestants the same rows, and its guard passes."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from attrs import evolve

from upo.bench.__main__ import bench, measure
from upo.bench.cases import Case, head_memory, many_responses, suite
from upo.bench.floor import head_gradient, needed, rate
from upo.bench.model import text, tokenizer
from upo.bench.report import verdict
from upo.bench.work import Work, rows
from upo.errors import UserError

pytestmark = pytest.mark.turns(2)


def test_the_head_is_left_out_of_memory(monkeypatch: pytest.MonkeyPatch):
    """A stand-in for both workers: 16 KiB above the head's gradient against 8 KiB above it."""
    case = head_memory()

    def turns(case: Case, alternations: int):
        sizes = [head_gradient(w) for w in (case.ours, case.other)]
        yield tuple({"seconds": 1.0, "memory": size + n * 8192} for size, n in zip(sizes, (2, 1), strict=True))

    monkeypatch.setattr("upo.bench.__main__.blocks", turns)
    monkeypatch.setattr("upo.bench.__main__.rate", lambda work: 1.0)
    assert head_gradient(case.ours) == 152_064 * 256 * 4
    assert measure(case, 1)["memory_ratio"] == 2
    assert measure(evolve(case, leave_out_head=False), 1)["memory_ratio"] > 9


def test_what_sharing_prompts_can_save_by_hand():
    """Two responses: the padded twin computes the prompt's layers and scores twice, the head no more often."""
    ours = Work("forward", prompt=3, response=2, pairs=1, steps=1)
    weights = 6 * (4 * 256 * 256 + 3 * 256 * 704)
    more = 2 * weights * 3 + 4 * 256 * 6 * 6
    assert needed(evolve(ours, layout="padded"), 1) == pytest.approx(needed(ours, 1) + more)
    large_prompts = many_responses(16, 4000, 1)
    assert large_prompts.at_least is not None and 0.85 * 15 < large_prompts.at_least < 0.85 * 16


def test_needed_operations_by_hand():
    """One pair: prompt of 3, responses of 2 tokens (the second is EOS)."""
    work = Work("forward", prompt=3, response=2, pairs=1, steps=1)
    weights = 6 * (4 * 256 * 256 + 3 * 256 * 704)
    scores = 6 + 2 * (3 + 1)
    expected = 2 * weights * 5 + 4 * 256 * 6 * scores + 2 * 256 * 16384 * 4
    assert needed(work, 3) == pytest.approx(3 * expected)


def test_rows_are_the_same_every_time_and_within_bounds():
    work = Work("upo")
    made = rows(work, 50)
    assert made == rows(evolve(work, engine="trl"), 50)
    assert all(4 <= len(p) <= 384 and len(r) == 2 for p, r in made)
    assert len({len(p) for p, _ in made}) > 20, "lengths vary"


def test_both_contestants_read_the_same_tokens():
    """TRL tokenises prompt, space, response and EOS as one text."""
    prompt, (chosen, _) = rows(Work("trl"), 1)[0]
    ids = tokenizer()(f"{text(prompt)} {text(chosen)}</s>").input_ids
    assert ids == [*prompt, *chosen, tokenizer().eos_token_id]


def test_a_missed_target_is_named():
    row = {"ratio": 4.0, "memory_ratio": 0.4, "floor": 0.8}
    row |= {"at_least": 5.0, "at_most_memory": 0.3, "at_least_floor": 0.7}
    assert verdict(row) == "short: speed 4.00, short: memory 0.40"
    assert verdict(row | {"ratio": 5.0, "memory_ratio": 0.3}) == "pass"


def test_every_kind_of_case_is_there():
    names = [case.name for case in suite("cpu")]
    assert len(names) == len(set(names))
    for part in (
        "live",
        "stored",
        "KTO",
        "UPO",
        "K=2",
        "K=16",
        "prompt-heavy",
        "response-heavy",
        "long",
        "152k",
        "twice",
    ):
        assert any(part in name for name in names), part


def test_the_matrix_rate_is_a_rate():
    assert 1e8 < rate(Work("forward", threads=1), tokens=64, repeats=1) < 1e14


def test_an_unknown_case_is_refused():
    with pytest.raises(UserError, match="no case is called"):
        bench("cpu", only="nothing like this")


@pytest.mark.parametrize(
    "apart",
    [
        pytest.param(False, marks=pytest.mark.nightly),
        pytest.param(True, marks=[pytest.mark.slow, pytest.mark.turns(3)]),
    ],
)
def test_a_small_case_ends_with_files(apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The packed forward against its padded twin, as a user would start it."""
    tiny = Work("forward", prompt=24, response=8, responses=4, pairs=2, steps=2, threads=1)
    case = Case("tiny", tiny, evolve(tiny, layout="padded"), 0.1, apart=apart)
    monkeypatch.setattr("upo.bench.__main__.cases_of", lambda _: [case])
    bench("short", alternations=2 if apart else 1, threads=1, out=tmp_path)
    (row,) = json.loads((tmp_path / "bench.json").read_text())["cases"]
    assert len(row["turns"]) == (2 if apart else 1)
    assert row["verdict"] == "pass" and row["pairs_per_second"] > 0 and row["memory"] > 0
    assert (tmp_path / "bench.png").stat().st_size > 5_000


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.skipif(find_spec("trl") is None, reason='TRL is missing: pip install "upo[bench]"')
def test_guard_against_trl(tmp_path: Path):
    """70 % of the targets, so that noise does not fail it."""
    words = ["--suite", "short", "--alternations", "2", "--tolerance", "0.7", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "upo.bench", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
