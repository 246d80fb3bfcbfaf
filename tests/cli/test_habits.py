"""Hints for settings as other packages call them, and for classes that cannot be made."""

from pathlib import Path
from typing import Any

import pytest
from mistakes import refused

import upo.cli.parser
from upo.cli.habits import HABITS, habit, table
from upo.cli.main import main

ROOT = Path(__file__).parent.parent.parent
CONFIG = str(ROOT / "experiments/quickstart/quickstart_sft.yaml")
OWN = """
from upo.methods import SFT

class Broken(SFT):
    def __init__(self, policy, **options):
        raise KeyError("cause of my own")

def function():
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of a user: one with classes, one that cannot be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_module.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import not_there_at_all\n")


def test_every_key_exists(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    parsers: list[Any] = []
    monkeypatch.setattr(upo.cli.parser, "shorten", lambda message, parser: parsers.append(parser) or ["error: x"])
    refused(main, capsys, CONFIG, "--nothing_like_it", "1")
    known = upo.cli.parser.known_names(parsers[0])
    for entry in HABITS:
        assert entry.here.split(".")[-1] in known, entry
    words = [word for entry in HABITS for word in entry.others]
    assert len(words) == len(set(words))


def test_the_table_is_printed_where_experiments_are() -> None:
    assert table() in (ROOT / "experiments/README.md").read_text()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--learning_rate", "1"], "model.init_args.optimizer"),
        (["--model.learning_rate", "1"], "model.init_args.optimizer"),
        (["--model.loss_type", "ipo"], "model.class_path"),
        (["--model.policy.model_name_or_path", "x"], "policy.path"),
        (["--data.per_device_train_batch_size", "4"], "data.pairs_per_step"),
        (["--model.policy.device_map", "auto"], "trainer.strategy"),
        (["--output_dir", "x"], "trainer.default_root_dir"),
        (["--trainer.max_step", "3"], "max_steps"),
        (["--trainer.num_train_epochs=2"], "trainer.max_epochs"),
        (["--model.optimizer", "AdamWW"], "did you mean `AdamW`?"),
        (["--model.optimizer", "torch.optim.AdamWW"], "did you mean `AdamW`?"),
        (["--model.scheduler", "cosine"], "`CosineAnnealingLR`"),
        (["--trainer.logger", "tensorboard"], "TensorBoardLogger"),
        (["--model", "own_broken.Method"], "not_there_at_all"),
        (["--model", "own_module.Missing"], "no attribute 'Missing'"),
        (["--model", "own_module.function"], "not correspond to a subclass of Method"),
        (["--model", "own_module.Broken"], "cause of my own"),
    ],
)
def test_the_cause_is_named(args: list[str], expected: str, own: None, capsys: pytest.CaptureFixture) -> None:
    assert expected in refused(main, capsys, CONFIG, *args)


def test_only_what_others_call_so() -> None:
    assert habit("betta") is None
    assert "trainer.max_epochs" in str(habit("num_train_epochs"))
