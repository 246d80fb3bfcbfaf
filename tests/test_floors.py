"""Six floors: imports run down only, no circle between files, and what lies in `methods/` is a method."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import upo.methods
from upo.methods.common.base import Method
from upo.runtime.moved import MOVED

ROOT = Path(__file__).parent.parent
FLOORS = (
    ("errors", "runtime", "functional", "metrics"),
    ("data",),
    ("models", "ops"),
    ("rewards", "judges", "rollout"),
    ("methods",),
    ("cli", "callbacks", "parallel", "evaluation", "comparison", "study"),
    ("fit", "evaluate", "compare", "ablate", "generate", "export", "merge", "check", "bench", "__main__"),
)
"""Base, data, models, scoring, methods, training and evaluation; above them the entries."""


def modules(root: Path) -> dict[str, Path]:
    """Every file of the package by its dotted name."""
    found = {}
    for path in sorted((root / "upo").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of each import, also inside functions; not what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, "") for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((child.module or "", alias.name) for alias in child.names)
        yield from imported(child)


def graph(root: Path) -> dict[str, set[str]]:
    """Which file of the package imports which."""
    known, edges = modules(root), {}
    for name, path in known.items():
        pairs = imported(ast.parse(path.read_text(encoding="utf-8")))
        files = {f"{module}.{x}" if f"{module}.{x}" in known else module for module, x in pairs}
        edges[name] = {file for file in files if file in known and file != name}
    return edges


def floor(module: str) -> int:
    first, last = f"{module}.".split(".")[1], module.rpartition(".")[2]
    if last == "__main__":
        return len(FLOORS) - 1
    return next(i for i, rooms in enumerate(FLOORS) if first in rooms)


def upward(edges: dict[str, set[str]]) -> list[str]:
    """Imports that run up; the package itself, which all of its files load first, belongs to no floor."""
    inner = {file: {other for other in to if other != "upo"} for file, to in edges.items() if file != "upo"}
    return [f"{file} -> {other}" for file, to in inner.items() for other in sorted(to) if floor(other) > floor(file)]


def circles(edges: dict[str, set[str]]) -> set[str]:
    """Files that import one another: what is left when files without imports, or that nobody imports, are taken off."""
    left = {file: set(to) for file, to in edges.items()}
    while True:
        wanted = {other for to in left.values() for other in to}
        ends = {file for file, to in left.items() if not to or file not in wanted}
        if not ends:
            return set(left)
        left = {file: to - ends for file, to in left.items() if file not in ends}


def test_imports_run_down_only() -> None:
    assert not upward(graph(ROOT))


def test_no_files_import_one_another() -> None:
    assert not circles(graph(ROOT))


@pytest.mark.parametrize("indent", ["", "    "], ids=["at the top", "inside a function"])
def test_what_is_planted_is_found(tmp_path: Path, indent: str) -> None:
    """An upward import and a circle, in a small house."""
    for name in ("data/example", "models/policy", "models/head"):
        (tmp_path / "upo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "upo" / f"{name}.py").write_text("")
    body = ("def f():\n" if indent else "") + indent
    (tmp_path / "upo/models/policy.py").write_text(body + "from upo.models.head import Head\n")
    assert not upward(graph(tmp_path)) and not circles(graph(tmp_path))
    (tmp_path / "upo/models/head.py").write_text(body + "import upo.models.policy\n")
    assert circles(graph(tmp_path)) == {"upo.models.policy", "upo.models.head"} and not upward(graph(tmp_path))
    (tmp_path / "upo/models/head.py").write_text("")
    (tmp_path / "upo/data/example.py").write_text(body + "from upo.models import head\n")
    assert upward(graph(tmp_path)) == ["upo.data.example -> upo.models.head"]
    (tmp_path / "upo/data/example.py").write_text("if TYPE_CHECKING:\n    from upo.models import head\n")
    assert not upward(graph(tmp_path))


def test_every_file_of_methods_holds_a_method() -> None:
    for name, path in modules(ROOT).items():
        if path.parent == ROOT / "upo/methods" and not path.stem.startswith("__"):
            own = [x for _, x in inspect.getmembers(importlib.import_module(name), inspect.isclass)]
            assert any(issubclass(x, Method) and x.__module__ == name for x in own), f"{name}: move it to common/"


def test_at_the_top_stand_entries_alone() -> None:
    files = {path.name for path in (ROOT / "upo").iterdir() if path.is_file()}
    entries = {f"{name}.py" for name in FLOORS[-1]} - {"check.py", "bench.py"}
    assert files <= entries | {"__init__.py", "errors.py", "README.md", "py.typed"}


def test_nobody_outside_methods_imports_a_method() -> None:
    concrete = {getattr(upo.methods, name).__module__ for name in upo.methods.__all__}
    for file, to in graph(ROOT).items():
        assert file.startswith("upo.methods") or not to & concrete, f"{file}: {to & concrete}"


def test_the_base_and_what_losses_read_know_no_lightning() -> None:
    for name, path in modules(ROOT).items():
        if name.startswith(("upo.functional", "upo.ops", "upo.metrics", "upo.data.batch", "upo.data.layout")):
            bad = [m for m, _ in imported(ast.parse(path.read_text(encoding="utf-8"))) if m.startswith("lightning")]
            assert not bad, f"{name}: {bad}"


@pytest.mark.parametrize("old", sorted(MOVED))
def test_old_paths_find_the_new_names(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    alias = importlib.reload(importlib.import_module(old))
    assert f"{old} has moved to {MOVED[old][0]}" in capsys.readouterr().err
    for place in MOVED[old]:
        names = {name: x for name, x in vars(importlib.import_module(place)).items() if name[0] != "_"}
        assert names and all(getattr(alias, name) is x for name, x in names.items())
    with pytest.raises(AttributeError, match="has moved"):
        alias.nothing  # noqa: B018
