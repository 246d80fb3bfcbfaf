"""Three new methods, a file and a file of tests each: every test that holds for all methods takes them as they are.

In a copy of the repository nothing else changes but the list of imports in `upo/methods/__init__.py`, and the README
that `python -m upo.methods --write` makes. (An experiment, which `test_repo.py` asks of each method, is one more file.)
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
FILES = ROOT / "tests" / "fixtures" / "new_methods"
TOYS = {"ToyPair": "toy_pair", "ToyLabel": "toy_label", "ToyList": "toy_list"}
OVER_ALL = (
    *("test_catalog", "test_cases", "test_floors", "test_no_method_is_left_out", "test_log_odds_are_claimed"),
    *("test_methods_say_whether_a_normaliser_cancels", "test_every_method_of_its_day"),
)
"""Files and tests that go through all methods by themselves."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of package, tests and experiments with the new methods in it."""
    house = tmp_path_factory.mktemp("house")
    for name in ("upo", "tests", "experiments", ".github"):
        shutil.copytree(ROOT / name, house / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, house)
    methods = house / "upo" / "methods"
    imports = ""
    for name, file in TOYS.items():
        shutil.copy(FILES / f"{file}.py", methods)
        shutil.copy(FILES / f"{file}_tests.py", house / "tests" / "methods" / f"test_{file}.py")
        imports += f"from upo.methods.{file} import {name}\n"
    listed = (methods / "__init__.py").read_text()
    head, tail = listed.split("__all__ = [\n")
    names = "".join(f'    "{name}",\n' for name in TOYS)
    (methods / "__init__.py").write_text(f"{head}{imports}\n__all__ = [\n{names}{tail}")
    assert python(house, "-m", "upo.methods", "--write").returncode == 0
    return house


def python(house: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(house), "UPO_SHARED": str(house / "nothing")}
    env.pop("PYTEST_ADDOPTS", None)
    return subprocess.run([sys.executable, *args], cwd=house, env=env, capture_output=True, text=True)


def over_all(house: Path) -> list[str]:
    """The files of tests that speak of all methods, and those of the new ones."""
    speaks = re.compile(r"upo\.methods\.__all__|\bevery_method\b")
    files = [path for path in sorted((house / "tests").rglob("test_*.py")) if path.name != Path(__file__).name]
    chosen = [path for path in files if path.stem.startswith("test_toy_") or speaks.search(path.read_text())]
    return [str(path.relative_to(house)) for path in chosen]


def run_tests(house: Path, *files: str, k: str) -> tuple[Counter[str], dict[str, str]]:
    """How many tests passed by method, and what did not pass, by test."""
    options = ("-m", "not gpu", "-p", "no:cacheprovider", "--junitxml", "done.xml")
    done = python(house, "-m", "pytest", *files, "-k", k, *options)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    passed, others = Counter(), {}
    for test in ElementTree.parse(house / "done.xml").iter("testcase"):
        named = re.search(r"\[(Toy\w+)\]", test.get("name", ""))
        if len(test):
            others[test.get("name", "")] = "\n".join(f"{part.tag}: {part.get('message')}" for part in test)
        elif named:
            passed[named[1]] += 1
    return passed, others


@pytest.mark.slow
@pytest.mark.turns(3)
@pytest.mark.timeout(1800)
def test_new_methods_pass_whatever_holds_for_all(house: Path) -> None:
    passed, others = run_tests(house, *over_all(house), k=" or ".join((*TOYS, *OVER_ALL, "toy_")))
    assert not others
    assert passed == {"ToyPair": 24, "ToyLabel": 24, "ToyList": 21}, "without a reference there is less to test"


@pytest.mark.slow
@pytest.mark.turns(3)
@pytest.mark.timeout(1800)
def test_what_a_test_file_forgets_is_found(house: Path) -> None:
    """A metric that the case does not name, and a missing reference by hand."""
    pairs, lists = (house / "tests" / "methods" / f"test_{TOYS[name]}.py" for name in ("ToyPair", "ToyList"))
    whole = {file: file.read_text() for file in (pairs, lists)}
    pairs.write_text(whole[pairs].replace('metrics={"violations"}, ', ""))
    lists.write_text(re.sub(r"(?m)^@case.*\n", "", whole[lists]))
    files = "tests/test_every_method_learns.py", "tests/test_wiring.py"
    passed, others = run_tests(house, *files, k="Toy and (test_metrics_have_their_names or what_its_formula_says)")
    for file, text in whole.items():
        file.write_text(text)
    assert passed == {"ToyPair": 1, "ToyLabel": 2, "ToyList": 1}
    unnamed, missing = others.values()
    assert "violations" in unnamed and "ToyList has no reference by hand" in missing
