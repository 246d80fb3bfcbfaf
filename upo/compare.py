"""Runs compared: `python -m upo.compare runs/quickstart runs/quickstart_kto`.

Runs that differ in their seed alone are one row; rows stand by method and name the hyper-parameters that differ.
Intervals are 95 % ones over prompts and seeds (upo.metrics.intervals.crossed); differences are taken between the same
prompt and the same seed first, so that what makes a prompt easy or hard drops out. What a method gains is never shown
without what it costs: preference, objective and KL stand side by side. Of a method at several strengths there are
fronts (upo.comparison.fronts) and figures at equal KL (upo.comparison.equal_kl).
"""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse.typing import PositiveFloat, PositiveInt

from upo.comparison.compare import compare
from upo.errors import short_errors
from upo.runtime.run_folder import Which


def main(args: Sequence[str] | None = None) -> None:
    """Compares finished runs: tables, paired differences, fronts; as comparison.json, .md, .html and pictures.

    Runs that differ in their seed alone are averaged. YAMLs of experiments may stand for runs: what is not trained yet
    is trained first, one run folder a seed, called <run folder>_seed<k>.
    """
    from upo.cli.command import ShortErrors

    parser = ShortErrors(prog="python -m upo.compare", description=main.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or YAMLs of experiments")
    parser.add_argument(
        "--baseline", type=Path | None, help="the run that the others are compared with; default: the first"
    )
    parser.add_argument(
        "--seeds", type=PositiveInt, default=1, help="number of seeds (0, 1, ...) to train of each YAML"
    )
    parser.add_argument(
        "--jobs", type=PositiveInt, default=1, help="number of runs at a time; several get one thread each"
    )
    parser.add_argument(
        "--at_kl",
        type=PositiveFloat,
        nargs="+",
        default=[],
        help="compare methods at these KL (nats), interpolated between each method's strengths",
    )
    parser.add_argument(
        "--checkpoint",
        type=Which,
        default="last",
        help="which evaluation is read: that of each run's last checkpoint, or of its best, in RUN/best",
    )
    parser.add_argument("--paper", type=bool, default=False, help="print the UPO paper's published cells beside ours")
    parser.add_argument(
        "--out", type=Path | None, help="folder for the files; default: the folder that the first run lies in"
    )
    given = parser.parse_args(args).as_dict()
    with short_errors():
        compare(**given)


if __name__ == "__main__":
    main()
