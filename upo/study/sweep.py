"""The missing runs of a study as a W&B sweep."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from upo.study.plan import Planned, Study


def write_sweep(study: Study, missing: Sequence[Planned], file: Path) -> None:
    """A W&B sweep whose one parameter is the config: agents on any machine take one run after the other."""
    content = {
        "name": study.folder.name,
        "method": "grid",
        "command": ["${env}", "python", "-m", "upo.fit", "${args}"],
        "parameters": {"config": {"values": [str(run.file) for run in missing]}},
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    print(f"{file}: {len(missing)} runs; start it with `wandb sweep {file}`, then `wandb agent` on each machine")
