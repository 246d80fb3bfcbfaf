"""What a run goes on with is what its checkpoint was made with, or the difference is said."""

import inspect
import json
import shutil
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import mistakes
import pytest
from test_two_commands import CONFIG, RUN, here, steps  # noqa: F401

from upo.cli.changes import changes, check_changes
from upo.cli.main import main
from upo.errors import UserError
from upo.rewards import ShortSentences

pytestmark = pytest.mark.turns(3)

refused = partial(mistakes.refused, main)
EASY = inspect.signature(ShortSentences.__init__).parameters["easy"].default
LAST = ("--config", "run.yaml", "--ckpt_path", "last")


@pytest.fixture
def killed(here: Path) -> Path:  # noqa: F811
    """A run that has taken two of four steps."""
    Path("run.yaml").write_text(CONFIG.replace("max_steps: 4", "max_steps: 2"))
    main(["--config", "run.yaml"])
    (RUN / "summary.json").unlink()
    Path("run.yaml").write_text(CONFIG)
    return here


@pytest.mark.turns(3)
@pytest.mark.parametrize(
    ("override", "said"),
    [
        (["--model.beta", "0.5"], "model.beta: 0.1 -> 0.5"),
        (["--model.optimizer.lr", "1"], "model.optimizer.lr: 5e-07 -> 1"),
        (["--model.scheduler.total_iters", "3"], "model.scheduler.total_iters: 150 -> 3"),
        (["--model", "IPO"], "model: upo.methods.DPO -> upo.methods.IPO"),
        (
            ["--model.policy.tokenizer", "tiny.byte_tokenizer"],
            "model.policy.tokenizer: tiny.tokenizer -> tiny.byte_tok",
        ),
        (["--data.pairs_per_step", "4"], "data.pairs_per_step: 2 -> 4"),
        (["--data.validation", "3"], "data.validation: 2 -> 3"),
        (["--data.rewards", '{"x": {"class_path": "Words"}}'], "data.rewards.x: nothing -> upo.rewards.Words"),
        (
            ["--data.sources", '[{"name": "hh", "path": "pairs.jsonl", "limit": 5}]'],
            "data.sources[0].limit: None -> 5",
        ),
        (["--seed_everything", "3"], "seed_everything: 0 -> 3"),
        (["--trainer.gradient_clip_val", "1"], "trainer.gradient_clip_val: None -> 1"),
        (["--trainer.callbacks", '[{"class_path": "upo.callbacks.rounds.Rounds"}]'], "trainer.callbacks: "),
    ],
)
def test_another_setting_is_refused(override: list[str], said: str, killed: Path, capsys) -> None:
    text = refused(capsys, *LAST, *override)
    assert said in text and "--allow_changes" in text and "step=2.ckpt was trained with other settings" in text


def test_all_differences_are_named_and_allowed_on_request(killed: Path, capsys) -> None:
    """Also of a checkpoint in another folder, and in a YAML that was edited."""
    Path("run.yaml").write_text(
        CONFIG.replace("reference: Fro", "beta: 0.3\n    reference: Fro").replace("max_length: 128", "max_length: 120")
    )
    text = refused(capsys, *LAST)
    assert "model.beta: 0.1 -> 0.3; data.max_length: 128 -> 120." in text
    other = (
        "--config",
        "run.yaml",
        "--ckpt_path",
        "run/checkpoints/step=2.ckpt",
        "--trainer.default_root_dir",
        "other",
    )
    assert "model.beta: 0.1 -> 0.3" in refused(capsys, *other)
    main([*LAST, "--allow_changes"])
    assert "--allow_changes: model.beta: 0.1 -> 0.3; data.max_length" in capsys.readouterr().out
    assert steps() == [0, 1, 2, 3]


def test_what_the_optimizer_holds_cannot_change(killed: Path, capsys) -> None:
    """It is restored: a change would do nothing, and nobody would see it."""
    assert "would change nothing: model.optimizer.lr" in refused(
        capsys, *LAST, "--model.optimizer.lr", "1", "--allow_changes"
    )


def test_places_devices_logging_and_length_may_differ(killed: Path, capsys) -> None:
    Path("moved").mkdir()
    shutil.move("pairs.jsonl", "moved/pairs.jsonl")
    shutil.move("run", "moved/run")
    files = ["--trainer.default_root_dir", "moved/run", "--data.rewards_cache", "elsewhere"]
    files += ["--data.sources", '[{"name": "hh", "path": "moved/pairs.jsonl"}]']
    speed = ["--data.workers", "1", "--trainer.devices", "1", "--data.tokens_per_microbatch", "300"]
    logged = ["--trainer.callbacks", '[{"class_path": "LearningRateMonitor"}]', "--trainer.max_steps", "5"]
    main([*LAST, *files, *speed, *logged, "--checkpoint.every_n_train_steps", "1"])
    assert "allow" not in capsys.readouterr().out


def test_other_data_under_the_same_name(killed: Path, capsys) -> None:
    """One word of one record, which no setting tells."""
    rows = Path("pairs.jsonl").read_text().splitlines()
    changed = [json.loads(row) for row in rows]
    for row in changed:
        row["chosen"] += " Indeed."
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    text = refused(capsys, *LAST)
    assert "the training data, or their tokens, are other than those that" in text and "--allow_changes" in text
    Path("pairs.jsonl").write_text("\n".join(rows))
    main([*LAST])
    assert steps() == [0, 1, 2, 3]


def spec(path: str, /, **options: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": options}


def test_settings_of_other_versions() -> None:
    """Classes that have moved, options that came with their default, and options that are gone."""
    old = {"model": spec("upo.methods.dpo.DPO", beta=0.1, policy=spec("upo.policy.Policy", path="a/m"), gone=3)}
    now = {
        "model": spec(
            "upo.methods.DPO", beta=0.1, policy=spec("upo.models.policy.Policy", path="b/m", dtype="float32"),
            label_smoothing=0.0,
        )
    }  # fmt: skip
    assert list(changes(old, now)) == []
    later = deepcopy(now)
    later["model"]["init_args"]["policy"]["init_args"]["dtype"] = "bfloat16"
    assert list(changes(old, later)) == ["model.policy.dtype: float32 -> bfloat16"]
    later["model"]["init_args"]["policy"]["init_args"]["path"] = "b/another"
    assert "model.policy.path: a/m -> b/another" in list(changes(old, later))


def test_an_option_that_is_left_out_has_its_default() -> None:
    """Parts of a configuration are saved as they were written."""
    bare = {"data": {"rewards": {"x": {"class_path": "upo.rewards.ShortSentences"}}}}
    same, other = ({"data": {"rewards": {"x": spec("upo.rewards.ShortSentences", easy=x)}}} for x in (EASY, EASY + 1))
    assert list(changes(bare, same)) == list(changes(same, bare)) == []
    assert list(changes(other, bare)) == [f"data.rewards.x.easy: {EASY + 1} -> {EASY}"]


def test_a_checkpoint_without_settings_is_not_compared(tmp_path: Path) -> None:
    assert check_changes(tmp_path, None, {"model": 1}, False) is None
    with pytest.raises(UserError, match="seed_everything: 0 -> 1"):
        check_changes(tmp_path, {}, {"seed_everything": 1}, False)
