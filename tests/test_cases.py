"""Cases of methods stand where they are looked for, once; parallel workers keep the tests of a run together."""

import ast
import importlib
from pathlib import Path

import pytest
from cases import Case, case_of, own_tests
from conftest import fixtures_of

import upo.methods
from upo.methods import DPO, IPO, IPOAveraged
from upo.methods.common.families import PairwiseMethod

FILES = sorted((Path(__file__).parent / "methods").glob("test_*.py"))
EVERY = [getattr(upo.methods, name) for name in upo.methods.__all__]


def mistakes(name: str, text: str, cases: dict[type, Case]) -> list[str]:
    """What is wrong with the cases of a test file."""
    found = []
    for kind in cases:
        if kind not in EVERY:
            found.append(f"{name}: {kind.__name__} is not in upo.methods.__all__")
        elif (own := "test_" + kind.__module__.rpartition(".")[2]) != name:
            found.append(f"{name}: nobody looks for the case of {kind.__name__} here; it belongs into {own}.py")
    if sum(map(written, ast.walk(ast.parse(text)))) > len(cases):
        found.append(f"{name}: two cases of one class")
    return found


def written(node: ast.AST) -> int:
    """Entries of a dictionary that is called CASES."""
    called = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["CASES"]
    return len(node.value.keys) if called and isinstance(node.value, ast.Dict) else 0


def test_each_case_is_that_of_a_method_and_found() -> None:
    modules = {file: importlib.import_module(file.stem) for file in FILES}
    cases = {file: getattr(module, "CASES", {}) for file, module in modules.items()}
    assert not [x for file in FILES for x in mistakes(file.stem, file.read_text(encoding="utf-8"), cases[file])]
    every = {kind: case for own in cases.values() for kind, case in own.items()}
    assert all(case_of(kind) is case for kind, case in every.items()) and len(every) > 70


def test_mistakes_are_found() -> None:
    class Mine(PairwiseMethod):
        """Of nobody else."""

    text = "CASES = {IPO: Case(), IPOAveraged: Case()}"
    assert not mistakes("test_ipo", text, {IPO: Case(), IPOAveraged: Case()})
    assert mistakes("test_ipo", text, {IPO: Case()}) == ["test_ipo: two cases of one class"]
    (sentence,) = mistakes("test_dpo", text, {DPO: Case(), IPO: Case()})
    assert "the case of IPO" in sentence and "test_ipo.py" in sentence
    assert mistakes("test_ipo", text, {IPO: Case(), Mine: Case()}) == ["test_ipo: Mine is not in upo.methods.__all__"]


def test_a_method_without_a_case_or_without_tests_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(PairwiseMethod):
        """In no file of its own."""

    monkeypatch.setattr(Mine, "__module__", "upo.methods.mine")
    assert own_tests(Mine) is None and case_of(Mine).source == "hh"
    monkeypatch.setattr(Mine, "__module__", "upo.methods.dpo")
    assert own_tests(Mine) is own_tests(DPO) and case_of(Mine).defaults is None


def test_a_broken_test_file_is_no_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_broken_method.py").write_text("import nothing_of_that_name")
    monkeypatch.syspath_prepend(tmp_path)
    broken = type("Broken", (PairwiseMethod,), {"__module__": "upo.methods.broken_method"})
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        case_of(broken)


def test_tests_of_a_run_stay_with_one_worker() -> None:
    files = ("test_every_method_learns", "test_every_method_losses", "test_every_method_agrees")
    scopes = {fixtures_of(f"tests/{file}.py::test_something[DPO]") for file in files}
    assert len(scopes) == 1 and fixtures_of("tests/test_every_method_learns.py::test_something[IPO]") not in scopes
    assert fixtures_of("tests/test_trajectories.py::test_something[4-DPO]") not in scopes
    assert fixtures_of("tests/data/test_units.py::test_something[DPO]") == "tests/data/test_units.py"
