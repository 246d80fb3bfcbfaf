"""Executes notebooks and stores what they show: `python tests/run_notebooks.py NAMES`; without names, all of them."""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PLACES = {"UPO_SHARED": "../../shared", "UPO_SMOLLM2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Variables that hold paths of this machine, and what is stored in their place."""
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def house_in(folder: Path) -> Path:
    """A copy of notebooks/ beside experiments/, where runs may be left."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns("runs", ".ipynb*"))
    (folder / "experiments").symlink_to(ROOT / "experiments")
    return folder / "notebooks"


def execute(name: str, house: Path, **replaced: str) -> Any:
    """The executed notebook; an error in a cell is raised here.

    Args:
        replaced: new values of variables that a cell sets, as source.
    """
    import nbclient
    import nbformat

    notebook = nbformat.read(house / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    for variable, value in replaced.items():
        pattern = re.compile(rf"^{variable} = .*$", re.M)
        assert any(pattern.search(cell.source) for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = pattern.sub(f"{variable} = {value}", cell.source)
    shared = str((ROOT / os.environ.get("UPO_SHARED", "../shared")).resolve())
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    client = nbclient.NotebookClient(
        notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(house)}}
    )
    client.execute(env=os.environ | {"PYTHONPATH": path, "UPO_SHARED": shared, "COLUMNS": "120"})
    return notebook


def shown(notebook: Any) -> tuple[str, int]:
    """What a notebook's outputs print, and how many pictures they show."""
    outputs = [x for cell in notebook.cells if cell.cell_type == "code" for x in cell.outputs]
    printed = [x.text for x in outputs if x.output_type == "stream" and x.name == "stdout"]
    return "".join(printed), sum("image/png" in x.get("data", {}) for x in outputs)


def code_hash(notebook: Any) -> str:
    """Tells outputs of this code from those of an earlier one."""
    return hashlib.sha256("\0".join(c.source for c in notebook.cells if c.cell_type == "code").encode()).hexdigest()


def store(name: str, house: Path) -> None:
    """Executes a notebook and writes it back with its outputs, without warnings, times and numbers of execution."""
    import nbformat

    notebook = execute(name, house)
    notebook.metadata["outputs_of"] = code_hash(notebook)
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.execution_count = None
            kept = [x for x in cell.outputs if not (x.output_type == "stream" and x.name == "stderr")]
            for output in kept:
                if output.output_type == "execute_result":
                    output.execution_count = None
            cell.outputs = kept
    for place, public in PLACES.items():  # as a reader's would be
        if place in os.environ:
            notebook = nbformat.from_dict(json.loads(json.dumps(notebook).replace(os.environ[place], public)))
    nbformat.write(notebook, ROOT / "notebooks" / f"{name}.ipynb")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        place = house_in(Path(folder))
        for each in sys.argv[1:] or [path.stem for path in NOTEBOOKS]:
            print(each, flush=True)
            store(each, place)
