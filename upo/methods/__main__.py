"""`python -m upo.methods`: all methods, or one of them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from upo.errors import UserError

README = Path(__file__).with_name("README.md")


def main(args: Sequence[str] | None = None) -> None:
    """Lists the methods; with a name, describes one: paper, equation, data, arguments with their defaults."""
    from upo.cli.command import ShortErrors
    from upo.methods.common.catalog import describe, entries, find, markdown

    parser = ShortErrors(prog="python -m upo.methods", description=main.__doc__)
    parser.add_argument("name", nargs="?", type=str | None, help="e.g. SimPO")
    parser.add_argument("--write", type=bool, default=False, help="write upo/methods/README.md anew")
    options = parser.parse_args(args)
    if options.write:
        README.write_text(markdown())
    elif options.name is not None:
        try:
            print("\n".join(describe(find(options.name))))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    else:
        width = max(len(e.name) for e in entries())
        for e in entries():
            print(f"{e.name:{width}}  {e.title} [{e.batch}{', no reference' if e.reference == 'no' else ''}]")
        print(
            "\n[in brackets: the kind of data; methods need a reference model unless they say `no reference`]\n"
            "python -m upo.methods NAME describes one: paper, equation, data, an experiment, arguments with defaults"
        )


if __name__ == "__main__":
    main()
