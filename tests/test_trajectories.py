"""Through the command line: the same losses whatever the split of a step, the layout, the ranks; also after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from upo.callbacks.metrics_csv import read_metrics

pytestmark = pytest.mark.turns(3)

METHODS = ("DPO", "KTO", "UPO")


def cases(*quick: tuple[int, str], of: tuple[int, ...], nightly: Sequence[tuple[int, str]] = ()) -> list:
    """Every number with every method; those that are neither `quick` nor `nightly` are marked slow."""
    marks = dict.fromkeys(quick, ()) | dict.fromkeys(nightly, pytest.mark.nightly)
    every = [(n, method) for n in of for method in METHODS]
    return [pytest.param(*case, marks=marks.get(case, pytest.mark.slow)) for case in every]


def config(folder: Path, method: str, **data: object) -> str:
    """A short run on HH with the real small model; returns the YAML's path."""
    upo = "    reward_weights: {length: 0.003}\n    value_warmup_steps: 2\n" if method == "UPO" else ""
    rewards = "  rewards: {length: Words}\n" if method == "UPO" else ""
    extra = "".join(f"  {k}: {v}\n" for k, v in data.items())
    path = folder / f"{method}-{len(list(folder.glob('*.yaml')))}.yaml"
    path.write_text(
        f"""model:
  class_path: {method}
  init_args:
    policy: {{path: "${{oc.env:UPO_SHARED}}/models/stories260k"}}
    reference: FrozenReference
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-3}}}}
    scheduler: {{class_path: torch.optim.lr_scheduler.LinearLR, init_args: {{start_factor: 0.5, total_iters: 4}}}}
{upo}data:
  sources:
    - {{name: hh, path: Anthropic/hh-rlhf, local: "${{oc.env:UPO_SHARED}}/data/hh", limit: 60}}
  validation: 12
{rewards}  rewards_cache: {folder}/cache
  max_length: 120
  max_response: 60
  overlong: [truncate_prompt_left, truncate_response]
  pairs_per_step: 8
{extra}trainer:
  max_epochs: 2
  gradient_clip_val: 1
  accelerator: cpu
  enable_progress_bar: false
"""
    )
    return str(path)


def losses(folder: Path) -> list[float]:
    rows = read_metrics(folder / "metrics.csv")
    assert [r["step"] for r in rows] == sorted({r["step"] for r in rows}), "each step once, in order"
    return [r["train/loss"] for r in rows if "train/loss" in r]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory, shared: Path):
    """Losses of the plain run by method, computed once."""
    return {}


def plain(method: str, baseline: dict, upo_fit, tmp_path: Path) -> list[float]:
    if method not in baseline:
        done = upo_fit("--config", config(tmp_path, method), "--trainer.default_root_dir", "plain")
        assert done.code == 0, done.text
        baseline[method] = losses(tmp_path / "plain")
    assert len(baseline[method]) == 12, "48 pairs, 8 a step, two epochs"
    return baseline[method]


@pytest.mark.parametrize(("budget", "method"), cases((300, "UPO"), of=(300, 900)))
def test_split_of_a_step_does_not_matter(budget: int, method: str, baseline, upo_fit, tmp_path: Path) -> None:
    """Micro-batches of about one pair, of uneven numbers of pairs, and all eight at once (the plain run)."""
    expected = plain(method, baseline, upo_fit, tmp_path)
    done = upo_fit(
        "--config", config(tmp_path, method, tokens_per_microbatch=budget), "--trainer.default_root_dir", "split"
    )
    assert done.code == 0, done.text
    assert losses(tmp_path / "split") == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("method", [pytest.param(m, marks=[] if m == "UPO" else pytest.mark.slow) for m in METHODS])
def test_padded_layout_gives_the_same_losses(method: str, baseline, upo_fit, tmp_path: Path) -> None:
    expected = plain(method, baseline, upo_fit, tmp_path)
    done = upo_fit("--config", config(tmp_path, method, layout="padded"), "--trainer.default_root_dir", "padded")
    assert done.code == 0, done.text
    assert losses(tmp_path / "padded") == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("method", [pytest.param(m, marks=[] if m == "UPO" else pytest.mark.slow) for m in METHODS])
def test_two_ranks_equal_one(method: str, baseline, upo_fit, tmp_path: Path) -> None:
    expected = plain(method, baseline, upo_fit, tmp_path)
    done = upo_fit(
        "--config", config(tmp_path, method, tokens_per_microbatch=900), "--trainer.default_root_dir", "ddp",
        "--trainer.strategy", "ddp", "--trainer.devices", "2", ranks=2,
    )  # fmt: skip
    assert done.code == 0, done.text
    assert [row["seen/pairs"] for row in read_metrics(tmp_path / "ddp/metrics.csv") if "seen/pairs" in row][-1] == 96
    assert losses(tmp_path / "ddp") == pytest.approx(expected, abs=2e-5)


def stored(*args: str) -> tuple[str, ...]:
    """Options of a run with a stored reference."""
    return (*args, "--model.reference", "StoredReference", "--model.reference.folder", "store")


@pytest.mark.parametrize(("ranks", "method"), cases((2, "UPO"), of=(1, 2), nightly=[(1, "UPO"), (2, "KTO")]))
def test_a_stored_reference_gives_the_same_losses(ranks: int, method: str, baseline, upo_fit, tmp_path: Path) -> None:
    """Filled by one rank, which a second run only reads, or by two."""
    expected = plain(method, baseline, upo_fit, tmp_path)
    path = config(tmp_path, method, tokens_per_microbatch=900)
    ddp = ("--trainer.strategy", "ddp", "--trainer.devices", "2") if ranks == 2 else ()
    rows = 120 if method == "DPO" else 240
    for folder, read in (("first", 0), ("second", rows))[: 3 - ranks]:
        done = upo_fit(*stored("--config", path), "--trainer.default_root_dir", folder, *ddp, ranks=ranks)
        assert done.code == 0, done.text
        assert f"{read} read, {rows - read} computed" in done.text
        assert losses(tmp_path / folder) == pytest.approx(expected, abs=1e-5 if ranks == 1 else 2e-5)


@pytest.mark.slow
def test_a_store_that_is_killed_while_it_is_filled_is_continued(baseline, upo_fit, tmp_path: Path, shared) -> None:
    """SIGKILL with a write after each forward pass; then two runs at the same time."""
    expected = plain("KTO", baseline, upo_fit, tmp_path)
    path = config(tmp_path, "KTO", tokens_per_microbatch=300)
    reached = lambda: len(list((tmp_path / "store").rglob("*.safetensors"))) > 3  # noqa: E731
    args = (*stored("--config", path), "--trainer.default_root_dir")
    code = "from upo.cli import main; from upo.models import precompute; precompute.SECONDS = 0; main.main()"
    run = subprocess.Popen(
        [sys.executable, "-c", code, *args, "killed"], cwd=tmp_path, env=os.environ | {"UPO_SHARED": str(shared)}
    )
    while run.poll() is None and not reached():
        time.sleep(0.01)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    with ThreadPoolExecutor() as threads:
        both = [threads.submit(upo_fit, *args, folder) for folder in ("one", "other")]
    for run, folder in zip(both, ("one", "other"), strict=True):
        assert run.result().code == 0, run.result().text
        assert "reference log-probs: 0 read" not in run.result().text
        assert losses(tmp_path / folder) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_a_run_with_a_stored_reference_is_evaluated_against_it(upo_fit, tmp_path: Path) -> None:
    args = ("--config", config(tmp_path, "DPO"), "--evaluation", "{prompts: 4, max_new_tokens: 8}")
    results = []
    for folder, options in (("live", args), ("stored", stored(*args))):
        done = upo_fit(*options, "--trainer.max_steps", "2", "--trainer.default_root_dir", folder)
        assert done.code == 0, done.text
        results.append(json.loads((tmp_path / folder / "evaluation.json").read_text())["metrics"])
    assert results[1] == pytest.approx(results[0], rel=1e-5, abs=1e-5) and "policy/kl" in results[1]


@pytest.mark.parametrize(("at", "method"), cases((9, "UPO"), of=(4, 9), nightly=[(4, "UPO"), (9, "DPO"), (9, "KTO")]))
def test_killed_and_resumed_equals_uninterrupted(at: int, method: str, baseline, upo_fit, tmp_path: Path) -> None:
    """SIGKILL in the middle of the first and of the second epoch; step for step and bit for bit the same."""
    expected = plain(method, baseline, upo_fit, tmp_path)
    args = ("--config", config(tmp_path, method), "--trainer.default_root_dir", "killed")
    args = (*args, "--checkpoint.every_n_train_steps", "2")
    folder = tmp_path / "killed"
    reached = lambda: any((folder / "checkpoints").glob(f"step={at // 2 * 2}*.ckpt"))  # noqa: E731
    killed = upo_fit(*args, kill_when=reached)
    assert killed.code == -signal.SIGKILL, killed.text
    done = upo_fit(*args, "--ckpt_path", "last")
    assert done.code == 0, done.text
    assert losses(folder) == expected


def test_sigterm_saves_and_exits_with_143(baseline, upo_fit, tmp_path: Path) -> None:
    expected = plain("DPO", baseline, upo_fit, tmp_path)
    args = ("--config", config(tmp_path, "DPO"), "--trainer.default_root_dir", "stopped")
    folder = tmp_path / "stopped"
    reached = lambda: (folder / "metrics.csv").exists() and len(losses(folder)) > 2  # noqa: E731
    stopped = upo_fit(*args, kill_when=reached, signal_=signal.SIGTERM)
    assert stopped.code == 143, stopped.text
    assert not (folder / "summary.json").exists()
    done = upo_fit(*args, "--ckpt_path", "last")
    assert done.code == 0, done.text
    assert losses(folder) == expected


def test_longer_after_max_steps_equals_uninterrupted(baseline, upo_fit, tmp_path: Path) -> None:
    """A finished run that is continued with more steps, though it ended within an epoch."""
    expected = plain("DPO", baseline, upo_fit, tmp_path)
    folder, path = tmp_path / "longer", config(tmp_path, "DPO")
    args = ("--config", path, "--trainer.default_root_dir", "longer")
    assert upo_fit(*args, "--trainer.max_steps", "8").code == 0
    (folder / "summary.json").unlink()
    done = upo_fit(*args, "--ckpt_path", "last")
    assert done.code == 0, done.text
    assert losses(folder) == expected
