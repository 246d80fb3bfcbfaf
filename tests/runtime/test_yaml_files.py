"""YAML files with a key that stands twice."""

from pathlib import Path

import pytest
from mistakes import refused

from upo.cli.main import main as fit
from upo.errors import UserError
from upo.runtime.yaml_files import read_yaml
from upo.study.plan import load


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model:\n  beta: 1\n  gamma: {beta: 2}\n  beta: 3\n")
    with pytest.raises(UserError, match=r"a\.yaml, line 4 .*`beta` stands twice"):
        read_yaml(file)
    with pytest.raises(UserError, match="`beta` stands twice"):
        load(file)


def test_what_is_written_once_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n")
    assert read_yaml(file) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_a_run_with_such_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: DPO\ntrainer: {max_steps: 1, max_steps: 2}\n")
    assert "`max_steps` stands twice" in refused(fit, capsys, str(file))


def test_stages_in_a_circle(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = (
        "model: {class_path: SFT, init_args: {policy: {config: {model_type: llama}, tokenizer: tiny.tokenizer}}}\n"
    )
    settings += "data: {sources: [{name: hh}]}\n"
    for name, before in (("a", "b"), ("b", "c"), ("c", "b")):
        Path(f"{name}.yaml").write_text(f"after: [{before}.yaml]\n{settings}")
    assert "b.yaml needs c.yaml needs b.yaml" in refused(fit, capsys, "a.yaml")
