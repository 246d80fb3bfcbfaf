"""The list of all experiments in experiments/README.md."""

from pathlib import Path

import pytest

from upo.study.index import index, main, with_index

FOLDER = Path(__file__).parents[2] / "experiments"


def test_the_list_is_fresh() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == with_index(text, FOLDER), "make it again: python -m upo.study.index"


def test_every_folder_is_introduced() -> None:
    """The table above the list says what each folder is about."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rooms = {path.parent.relative_to(FOLDER) for path in FOLDER.rglob("*.yaml")}
    assert not [room for room in rooms if f"| [{room}/]({room}) |" not in text]


def test_every_yaml_has_a_row(tmp_path: Path) -> None:
    (tmp_path / "hh").mkdir()
    (tmp_path / "hh/a.yaml").write_text("# Question:  is a | b?\nmodel: 1\n")
    (tmp_path / "studies/x").mkdir(parents=True)
    (tmp_path / "studies/x/b.yaml").write_text("# Question:  b?\n")
    assert index(tmp_path) == (
        "\n### hh/\n| YAML | question |\n|---|---|\n| [a](hh/a.yaml) | is a / b? |\n"
        "\n### studies/x/\n| YAML | question |\n|---|---|\n| [b](studies/x/b.yaml) | b? |\n"
    )


def test_words_above_the_list_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "root of the repository" in capsys.readouterr().err
    Path("experiments/hh").mkdir(parents=True)
    Path("experiments/README.md").write_text("# Words\n")
    Path("experiments/hh/a.yaml").write_text("model: 1\n")
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "a.yaml: the first line should be `# Question:" in capsys.readouterr().err
    Path("experiments/hh/a.yaml").write_text("# Question:  a?\n")
    main([])
    main([])
    text = Path("experiments/README.md").read_text()
    assert text.startswith("# Words\n<!-- Made by") and text.count("| [a](hh/a.yaml) | a? |") == 1
