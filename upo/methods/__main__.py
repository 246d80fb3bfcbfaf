"""`python -m upo.methods`: all methods, or one of them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from upo.errors import UserError

README = Path(__file__).with_name("README.md")


def main(args: Sequence[str] | None = None) -> None:
    """Lists the methods; with a name shows one of them: paper, equation, data, arguments with their defaults."""
    from upo.cli.command import ShortErrors
    from upo.methods.common.catalog import describe, entries, find, markdown

    parser = ShortErrors(prog="python -m upo.methods", description=main.__doc__)
    parser.add_argument("name", nargs="?", type=str | None, help="e.g. SimPO")
    parser.add_argument("--write", type=bool, default=False, help="makes upo/methods/README.md again")
    given = parser.parse_args(args)
    if given.write:
        README.write_text(markdown())
    elif given.name is not None:
        try:
            print("\n".join(describe(find(given.name))))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    else:
        width = max(len(e.name) for e in entries())
        for e in entries():
            print(f"{e.name:{width}}  {e.title} [{e.batch}{', no reference' if e.reference == 'no' else ''}]")
        print(
            "\n[in brackets: what an example must give; most need a reference model beside the policy]\n"
            "python -m upo.methods NAME shows one: paper, equation, data, an experiment, arguments with their defaults"
        )


if __name__ == "__main__":
    main()
