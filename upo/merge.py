"""Weighted sums of policies: `python -m upo.merge runs/safe runs/kind --weights 0.7 0.3 --out soup`."""

from collections.abc import Sequence
from pathlib import Path

from upo.cli.command import ShortErrors
from upo.errors import short_errors
from upo.models.weighted_sum import merge


def main(args: Sequence[str] | None = None) -> None:
    """Writes the weighted sum of models that started as one: run folders, .ckpt files, Hugging Face folders."""
    parser = ShortErrors(prog="python -m upo.merge", description=main.__doc__)
    parser.add_argument("parts", type=Path, nargs="+", help="run folders, .ckpt files, model folders or hub names")
    parser.add_argument("--out", type=Path, required=True, help="folder for the merged model")
    parser.add_argument(
        "--weights", type=float, nargs="+", help="one weight for each part, summing to 1; default: equal weights"
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="replace what the folder holds")
    given = parser.parse_args(args).as_dict()
    with short_errors():
        merge(**given)


if __name__ == "__main__":
    main()
