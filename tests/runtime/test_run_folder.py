"""File names of a run folder stand in one place."""

import ast
from pathlib import Path

from upo.runtime.run_folder import MANIFEST, RunPaths

ROOT = Path(__file__).parent.parent.parent


def test_a_run_is_finished_by_its_summary_and_exported_by_its_model(tmp_path: Path) -> None:
    run = RunPaths(str(tmp_path))
    assert not run.finished
    run.export.mkdir()
    assert not run.exported
    run.summary.write_text("{}")
    assert run.finished and run.exported
    run.export.rmdir()
    assert run.finished and not run.exported


def test_a_checkpoint_knows_its_run() -> None:
    run = RunPaths("runs/a")
    assert RunPaths.of_checkpoint(run.checkpoints / "step=3.ckpt") == run


def test_nobody_else_spells_the_names() -> None:
    run = RunPaths("")
    values = (getattr(run, name) for name, x in vars(RunPaths).items() if isinstance(x, property))
    names = {path.name for path in values if isinstance(path, Path) and path.suffix} | {MANIFEST}
    assert len(names) >= 14
    for file in (ROOT / "upo").rglob("*.py"):
        if file.name != "run_folder.py" or file.parent.name != "runtime":
            texts = {x.value for x in ast.walk(ast.parse(file.read_text())) if isinstance(x, ast.Constant)}
            assert not texts & names, f"{file}: {texts & names}"
