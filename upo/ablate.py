"""Studies: `python -m upo.ablate experiments/studies/stories/study.yaml`.

One YAML names experiments and what to change in them (upo.study.plan says how). Each run gets a complete YAML of its
own, is trained where it is missing, and all are compared. What is finished is never trained again: a second call draws
the comparison anew and does nothing else; a killed study goes on where it was, its runs from their checkpoints.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from upo.cli.command import ShortErrors
from upo.errors import short_errors
from upo.study.ablation import ablate


def main(args: Sequence[str] | None = None) -> None:
    """Trains all runs of a study that are missing, then compares them.

    The study's `folder` gets configs/ (a complete YAML each run), one run folder each with its log.txt, manifest.json,
    and the comparison. Exit code 1: some runs failed; the others are compared, a further call tries them again.
    """
    parser = ShortErrors(prog="python -m upo.ablate", description=main.__doc__)
    parser.add_argument("file", type=Path, help="YAML of the study")
    parser.add_argument(
        "--jobs", type=PositiveInt, default=1, help="number of runs at a time; several get one thread each"
    )
    parser.add_argument("--only", type=str, nargs="+", default=[], help="train only these runs, or entries of `runs:`")
    parser.add_argument("--dry_run", type=bool, default=False, help="check and list the runs; write and train nothing")
    parser.add_argument(
        "--league",
        type=Literal["full", "short"],
        default="full",
        help="for a study with `league:`: train all its rounds, or the short list of methods that it names",
    )
    parser.add_argument(
        "--sweep", type=Path | None, help="write the missing runs to this file as a W&B sweep; train nothing"
    )
    given = parser.parse_args(args)
    with short_errors(f"go on with: python -m upo.ablate {given.file}"):
        failed = ablate(given.file, given.jobs, given.only, given.dry_run, given.sweep, given.league == "short")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
