"""The notebooks: stored with what they show, on public functions alone, executed from the first cell to the last."""

import ast
import json
import re
from pathlib import Path

import pytest
from rotation import taking_turns
from run_notebooks import NOTEBOOKS, code_hash, execute, house_in, shown

ROOT = Path(__file__).parent.parent
EXPECTED = {
    "add_a_method": (2, [r"dead_zone: held-out accuracy 0\.\d+, margin", r"dpo: held-out accuracy"]),
    "an_instruct_model": (
        0,
        [
            r"<\|im_start\|>assistant",
            r"it is the start again: True",
            r"the merged model writes the same: True",
            r"readability, higher is easier +0\.\d\d +0\.\d\d",
        ],
    ),
    "batches_and_masks": (4, [r"desirable: \[True, False\]", r"response 1 \[(\d+), .*\nresponse 2 \[\1, "]),
    "chat_with_a_checkpoint": (
        0,
        [r"same seed, same text: True \| another seed, same text: False", r"(.*same text True\n){3}"],
    ),
    "compare_runs": (2, ["objective: [+-]", "KTO_0.0003"]),
    "implicit_rewards": (2, [r"policy and label agree in (6|7|8|9)\d", "flipped labels among all"]),
    "your_own_data_and_reward": (
        1,
        [r"dropped: 1 x identical pair", r"not read: `annotator`", r"brevity.* +0\.\d\d +0\.\d\d"],
    ),
    "why_modpo_stalls": (5, [r"-0\.5: 'gap \+?-?0\.\d+, wanted -4\.0'", r"-0\.5: 'gap -4\.00, wanted -4\.0'"]),
}
"""How many pictures a notebook draws at least, and what it prints."""
QUICK = "batches_and_masks"
"""Executed in each slow suite, one or two of the others in that of a day."""
INSTRUCT = "an_instruct_model"
"""Needs a model that no package holds: executed at night, where it lies."""


def code(path: Path) -> list[str]:
    """Code cells without magic lines."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    return ["".join(line for line in cell["source"] if not line.startswith("%")) for cell in cells]


def test_every_notebook_is_expected_and_listed() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(EXPECTED)
    readme = (ROOT / "README.md").read_text()
    for path in NOTEBOOKS:
        assert f"notebooks/{path.name}" in readme


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_those_of_the_code(path: Path) -> None:
    """Stored by `python tests/run_notebooks.py`: readers on the web see tables and pictures; nothing of a machine."""
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info", "outputs_of"}
    again = f"python tests/run_notebooks.py {path.stem}"
    assert notebook.metadata["outputs_of"] == code_hash(notebook), f"the code has changed since: {again}"
    assert path.stat().st_size < 600_000
    assert not any(cell.metadata for cell in notebook.cells)
    text = path.read_text()
    assert "site-packages" not in text and str(Path.home()) not in text and str(ROOT) not in text
    outputs = [x for cell in notebook.cells if cell.cell_type == "code" for x in cell.outputs]
    assert not any(x.output_type == "error" or x.get("name") == "stderr" for x in outputs)
    expects(path.stem, *shown(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_read_like_tutorials(path: Path) -> None:
    """A title, words before code, public names alone, no cell longer than a page."""
    cells = json.loads(path.read_text())["cells"]
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
    assert sum(cell["cell_type"] == "markdown" for cell in cells) >= 4
    for text in code(path):
        assert len(text.splitlines()) <= 60, text
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert not [alias.name for alias in node.names if alias.name.startswith("_")]
            elif isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_") or node.attr == "__init__", node.attr


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all notebooks: the model that the first one trains is there for the others."""
    return house_in(tmp_path_factory.mktemp("house"))


def expects(name: str, text: str, pictures: int) -> None:
    least, expected = EXPECTED[name]
    assert pictures >= least, f"{pictures} pictures"
    for pattern in expected:
        assert re.search(pattern, text), f"{pattern} not in:\n{text}"


@pytest.mark.parametrize(
    "name",
    taking_turns(sorted(EXPECTED.keys() - {INSTRUCT}), 6, pytest.mark.slow, pytest.mark.nightly, always=[QUICK]),
)
def test_notebooks_run(name: str, house: Path) -> None:
    pytest.importorskip("nbclient")
    expects(name, *shown(execute(name, house)))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("batches_and_masks", marks=pytest.mark.nightly),
        pytest.param("chat_with_a_checkpoint", marks=pytest.mark.nightly),
        pytest.param("implicit_rewards", marks=pytest.mark.nightly),
    ],
)
def test_the_switch_to_real_data(name: str, house: Path, stories260k: str) -> None:
    shorter = {"STEPS": "3", "HELD_OUT": "40"} if name == "implicit_rewards" else {}
    pytest.importorskip("nbclient")
    text, pictures = shown(execute(name, house, REAL="True", **shorter))
    assert pictures >= min(1, EXPECTED[name][0])
    assert text.strip()


@pytest.mark.nightly
def test_an_instruct_model(house: Path, smollm2: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPO_SMOLLM2", smollm2)
    pytest.importorskip("nbclient")
    expects(INSTRUCT, *shown(execute(INSTRUCT, house, STEPS="2")))
