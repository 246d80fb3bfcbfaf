"""manifest.json of a study: which runs there are, and what became of each."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from upo.runtime.atomic_files import write_text
from upo.runtime.run_folder import MANIFEST, RunPaths
from upo.study.plan import Planned, Study


def finished(run: Planned) -> bool:
    """Whether it is trained and evaluated."""
    return RunPaths(run.folder).finished


class Manifest:
    """manifest.json: what there is of each run, up to date at every moment."""

    def __init__(self, study: Study):
        self.file, self.study = study.folder / MANIFEST, study
        before: dict[str, Any] = {}
        with suppress(OSError, ValueError, KeyError):
            before = {f"{row['name']}_seed{row['seed']}": row for row in json.loads(self.file.read_text())["runs"]}
        self.rows = {run.label: self._row(run, before.get(run.label, {})) for run in study.runs}

    def _row(self, run: Planned, before: Mapping[str, Any]) -> dict[str, Any]:
        failed = before.get("status") == "failed"
        return {
            "name": run.name,
            "entry": run.entry,
            "seed": run.seed,
            "config": str(run.file),
            "folder": str(run.folder),
            "status": "finished" if finished(run) else "failed" if failed else "missing",
            "seconds": before.get("seconds", 0.0),
            "error": before.get("error") if failed and not finished(run) else None,
        }

    def update(self, label: str, seconds: float = 0.0, **values: Any) -> None:
        row = self.rows[label]
        row.update(values, seconds=round(row["seconds"] + seconds, 1))
        self.write()

    def stopped(self) -> None:
        """Nothing runs any more: what was running is missing again."""
        for row in self.rows.values():
            if row["status"] == "running":
                row["status"] = "missing"
        self.write()

    def write(self) -> None:
        content = {"study": str(self.study.file), "runs": list(self.rows.values())}
        write_text(self.file, json.dumps(content, indent=1) + "\n")
