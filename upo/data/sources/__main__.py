"""`python -m upo.data.sources`: all data sources, each with example records."""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from inspect import getdoc
from pathlib import Path

from upo.data import sources

EXAMPLES = Path(__file__).with_name("examples.jsonl")
"""Records that sources read, and what becomes of them; README.md shows the same."""


def main(args: Sequence[str] | None = None) -> None:
    """Lists the data sources with a record of each; with a name, describes one with its options."""
    parser = ArgumentParser(prog="python -m upo.data.sources", description=main.__doc__)
    parser.add_argument("name", nargs="?", choices=sources.__all__, metavar="NAME", help="e.g. trl")
    wanted = parser.parse_args(args).name
    examples = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]
    for name in [wanted] if wanted else sources.__all__:
        text = getdoc(getattr(sources, name)) or ""
        print(f"{name}: {text if wanted else text.partition(chr(10))[0]}")
        for example in (x for x in examples if x["source"] == name):
            print(f"  {json.dumps(example['record'], ensure_ascii=False)}\n    -> {example['becomes']}")
        print()
    if not wanted:
        print(
            "data.sources: [{name: NAME, path: FILE}]; python -m upo.data.sources NAME describes one with its options"
        )


if __name__ == "__main__":
    main()
