"""`upo NAME` is `python -m upo.NAME`: help on one screen, mistakes with a hint, nothing heavy before the entry."""

import importlib
import json
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
from mistakes import refused
from test_startup import cpu_seconds

from upo.__main__ import ENTRIES, main, usage

ROOT = Path(__file__).parent.parent.parent


def test_all_entries_are_subcommands() -> None:
    files = [path for path in (ROOT / "upo").glob("*.py") if "\n    main()\n" in path.read_text()]
    files += (ROOT / "upo").glob("*/__main__.py")
    modules = {str(path.relative_to(ROOT).with_suffix("")).replace("/", ".") for path in files}
    assert {entry.module for entry in ENTRIES.values()} == modules - {"upo.__main__"}


@pytest.mark.parametrize("name", ENTRIES)
def test_help_is_that_of_the_module(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m upo.{name} ")


def test_usage_fits_one_screen(capsys: pytest.CaptureFixture) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    for name in ENTRIES:
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert f" upo {name} " in line, "an example"
        for word in line.split():
            assert not word.startswith("experiments/") or (ROOT / word).is_file(), word


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"upo {importlib.metadata.version('upo')}\n"


def test_mistyped_subcommand_gets_a_hint(capsys: pytest.CaptureFixture) -> None:
    text = refused(main, capsys, "fitt", "experiments/quickstart.yaml")
    assert "`fitt` is no subcommand; did you mean `fit`?" in text


def test_nothing_asked_for_is_no_success(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2 and capsys.readouterr().err.strip() == usage()


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        ("fit a.yaml b.yaml --model.beta 0.2", "a.yaml b.yaml --model.beta 0.2"),
        ("fit --config a.yaml --overwrite", "--config a.yaml --overwrite"),
        ("fit", ""),
        ("evaluate runs/a --prompts 2", "runs/a --prompts 2"),
        ("check a.yaml b.yaml --devices 8", "a.yaml b.yaml --devices 8"),
    ],
)
def test_words_reach_the_entry(words: str, passed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    name, *rest = words.split()
    monkeypatch.setitem(sys.modules, ENTRIES[name].module, SimpleNamespace(main=seen.append))
    main([name, *rest])
    assert seen == [passed.split()]


def test_a_file_of_fit_is_its_config(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    missing = tmp_path / "no_such.yaml"
    assert "no_such.yaml" in refused(main, capsys, "fit", str(missing))


def test_console_script_calls_main() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("upo", scripts["upo"], "console_scripts").load() is main


def test_only_python_is_loaded_before_the_entry() -> None:
    code = """
import json, sys
from upo.__main__ import main
main(["--help"])
main(["completion", "bash"])
names = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(names - sys.stdlib_module_names - {"upo"})), file=sys.stderr)
"""
    bare = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert set(json.loads(bare.stderr)) <= {"__main__", "__mp_main__"}


@pytest.mark.alone
def test_help_takes_no_time() -> None:
    """CPU seconds, the best of three."""
    command = [sys.executable, "-m", "upo", "--help"]
    assert min(cpu_seconds(command) for _ in range(3)) < 0.3


def completed(words: list[str], folder: Path) -> list[str]:
    """What bash offers for the last of `words`."""
    code = """
eval "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_upo
printf '%s\\n' "${COMPREPLY[@]}"
"""
    script = subprocess.run(
        [sys.executable, "-m", "upo", "completion", "bash"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    command = ["bash", "--norc", "-c", code, "bash", script, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert not done.stderr
    return sorted(filter(None, done.stdout.split("\n")))


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ev"], ["evaluate"]),
        (["me"], ["merge", "methods"]),
        (["completion", ""], ["bash"]),
        (["fit", ""], ["a.yaml", "b c.yml", "runs"]),
        (["fit", "a.yaml", "--config", "b"], ["b c.yml"]),
        (["evaluate", "ru"], ["runs"]),
        (["export", "n"], ["notes.txt"]),
    ],
)
def test_bash_completes_names_and_files(words: list[str], offered: list[str], tmp_path: Path) -> None:
    for name in ("a.yaml", "b c.yml", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "runs").mkdir()
    assert completed(["upo", *words], tmp_path) == offered


def test_other_shells_are_refused(capsys: pytest.CaptureFixture) -> None:
    assert "only bash" in refused(main, capsys, "completion", "fish")
