"""Hygiene of the repository: sizes, complete experiments, the commands and links of all READMEs."""

import importlib
import io
import re
import runpy
import shlex
import warnings
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import upo.methods
from upo.cli.main import CLI, main
from upo.study.ablation import ablate

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "upo").rglob("*.py"))
YAMLS = sorted((ROOT / "experiments").rglob("*.yaml"))
STUDIES = [path for path in YAMLS if "\nruns:" in path.read_text()]
HARDWARE = [path for path in YAMLS if path.parent.name == "hardware"]
EXPERIMENTS = [path for path in YAMLS if path not in STUDIES + HARDWARE]
QUICK = ("quickstart", "llama7b", "stories_", "hh_stories260k_sft", "hh_stories260k_dpo", "hh_stories260k_upo")
"""Beginnings of the names of experiments that every test run parses; the slow one parses all."""
READMES = [
    ROOT / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *sorted((ROOT / "experiments").rglob("*.md")),
    *sorted((ROOT / "upo").rglob("README.md")),
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_imports(path: Path) -> None:
    if path.name != "__main__.py":
        importlib.import_module(name_of(path))


def test_files_stay_readable() -> None:
    long = {name_of(p): n for p in MODULES if (n := len(p.read_text().splitlines())) > 250}
    assert not long, f"beyond 250 lines: {long}"


def test_every_method_has_an_experiment() -> None:
    trained = {m for p in EXPERIMENTS for m in re.findall(r"^  class_path: ([\w.]+)$", p.read_text(), re.M)}
    assert not set(upo.methods.__all__) - {name.rpartition(".")[2] for name in trained}


def test_no_method_is_chosen_by_a_string() -> None:
    for file in MODULES:
        assert not re.search(r"(loss_type|loss_name|method) *== *['\"]", file.read_text()), file


@pytest.mark.parametrize(
    "path", YAMLS, ids=lambda p: "-".join(p.relative_to(ROOT / "experiments").with_suffix("").parts)
)
def test_experiments_say_what_they_are_for(path: Path) -> None:
    """Four comment lines that begin as they should, with something behind each."""
    lines = path.read_text().splitlines()
    for line, word in zip(lines, ("Question:", "Paper:", "Command:", "Expected:"), strict=False):
        assert line.startswith(f"# {word}") and line.removeprefix(f"# {word}").strip(), line
    option = " " if path in STUDIES else " --config "
    assert f"{option}{path.relative_to(ROOT)}" in lines[2]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem.startswith(QUICK) else [pytest.mark.slow])
        for path in EXPERIMENTS
    ],
)
def test_experiments_are_complete(path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A config that the parser accepts as it stands."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as exit_:
        CLI(["--config", str(path), "--print_config"])
    assert exit_.value.code == 0
    assert "default_root_dir: runs/" in capsys.readouterr().out


@pytest.mark.turns(2)
@pytest.mark.parametrize("path", HARDWARE, ids=lambda p: p.stem)
def test_hardware_goes_with_an_experiment(path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """As a second --config; nothing but the Trainer changes."""
    monkeypatch.chdir(ROOT)
    printed = []
    for overlay in ([], ["--config", str(path)]):
        with pytest.raises(SystemExit) as exit_:
            CLI(["--config", str(ROOT / "experiments/quickstart/quickstart.yaml"), *overlay, "--print_config"])
        assert exit_.value.code == 0
        printed.append(yaml.safe_load(capsys.readouterr().out))
    alone, both = printed
    asked = yaml.safe_load(path.read_text())["trainer"]
    assert {k: v for k, v in both.items() if k != "trainer"} == {k: v for k, v in alone.items() if k != "trainer"}
    assert within(asked, both["trainer"])


def within(asked: Any, found: Any) -> bool:
    """Whether all that is asked for was understood; defaults may stand beside it, lists may be sets."""
    if isinstance(asked, dict):
        return all(k in found and within(x, found[k]) for k, x in asked.items())
    return sorted(asked) == sorted(found) if isinstance(asked, list) else asked == found


@pytest.mark.slow
@pytest.mark.turns(3)
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_studies_are_complete(path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Every run that a study plans has a config that the parser accepts."""
    monkeypatch.chdir(ROOT)
    assert ablate(path, dry_run=True) == []
    assert "runs are to be trained" in capsys.readouterr().out


def readme_commands() -> list[str]:
    """Each command of this package that stands in a bash block of any README, once."""
    blocks = (block for path in READMES for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.S))
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = (line.split("#")[0].strip() for block in text.splitlines() for line in block.split("&&"))
    return sorted({line for line in lines if re.search(r"python3? -m upo\.", line)})


@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """`upo.fit` resolves the config; other entries know every option that is shown, and YAMLs that are named exist."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    entry, args = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    assert not [a for a in args if a.endswith(".yaml") and not Path(a).is_file()]
    if entry == "upo.fit":
        with pytest.raises(SystemExit) as exit_:
            main(args if any("help" in a for a in args) else [*args, "--print_config"])
        assert exit_.value.code == 0
        return
    options = {a.partition("=")[0].partition(".")[0] for a in args if a.startswith("--")}
    assert options <= set(re.findall(r"--\w+", help_of(entry))), f"{entry} --help does not know them all"


@cache
def help_of(entry: str) -> str:
    """What `python -m ENTRY --help` prints."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as text, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it may be imported already
        patch.setattr("sys.argv", [entry, "--help"])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_module(entry, run_name="__main__", alter_sys=True)
    assert exit_.value.code == 0
    return text.getvalue()


def test_the_readme_is_short() -> None:
    """What does not fit belongs into the README of the folder that it is about."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", READMES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text())
    assert not [link for link in links if not (path.parent / link).exists()]


def test_the_map_names_the_house() -> None:
    """Every file at the top of the package and every folder below it."""
    text = (ROOT / "upo" / "README.md").read_text()
    for path in MODULES:
        if path.parent == ROOT / "upo" and path.stem != "__init__":
            assert f"`{path.name}`" in text, f"upo/README.md lacks {path.name}"
        elif path.name == "__init__.py" and path.parent != ROOT / "upo":
            assert f"{path.parent.name}/`" in text, f"upo/README.md lacks {path.parent.name}/"
