"""Through the command line: the same losses whatever the split of a step, the layout, the ranks; also after a kill."""

import signal
from pathlib import Path

import pytest

from upo.callbacks.metrics_csv import read_metrics

METHODS = ("DPO", "KTO", "UPO")


def cases(*quick: tuple[int, str], of: tuple[int, ...]) -> list:
    """Every number with every method; those that are not `quick` are marked slow."""
    every = [(n, method) for n in of for method in METHODS]
    return [pytest.param(*case, marks=[] if case in quick else pytest.mark.slow) for case in every]


def config(folder: Path, method: str, **data: object) -> str:
    """A short run on HH with the real small model; returns the YAML's path."""
    upo = (
        "    reward_weights: {length: 0.003}\n    value_dropout: 0\n    value_warmup_steps: 2\n"
        if method == "UPO"
        else ""
    )
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
  max_length: 200
  max_response: 100
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


@pytest.mark.parametrize(("budget", "method"), cases((300, "UPO"), (900, "DPO"), of=(300, 900)))
def test_split_of_a_step_does_not_matter(budget: int, method: str, baseline, upo_fit, tmp_path: Path) -> None:
    """Micro-batches of about one pair, of uneven numbers of pairs, and all eight at once (the plain run)."""
    expected = plain(method, baseline, upo_fit, tmp_path)
    done = upo_fit(
        "--config", config(tmp_path, method, tokens_per_microbatch=budget), "--trainer.default_root_dir", "split"
    )
    assert done.code == 0, done.text
    assert losses(tmp_path / "split") == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_padded_layout_gives_the_same_losses(method: str, baseline, upo_fit, tmp_path: Path) -> None:
    expected = plain(method, baseline, upo_fit, tmp_path)
    done = upo_fit("--config", config(tmp_path, method, layout="padded"), "--trainer.default_root_dir", "padded")
    assert done.code == 0, done.text
    assert losses(tmp_path / "padded") == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_one(method: str, baseline, upo_fit, tmp_path: Path) -> None:
    expected = plain(method, baseline, upo_fit, tmp_path)
    done = upo_fit(
        "--config", config(tmp_path, method, tokens_per_microbatch=900), "--trainer.default_root_dir", "ddp",
        "--trainer.strategy", "ddp", "--trainer.devices", "2", ranks=2,
    )  # fmt: skip
    assert done.code == 0, done.text
    assert losses(tmp_path / "ddp") == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("at", "method"), cases((4, "DPO"), (9, "UPO"), of=(4, 9)))
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
