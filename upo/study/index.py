"""`python -m upo.study.index`: writes the list of all experiments at the end of experiments/README.md."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from upo.errors import UserError, short_errors

FOLDER = Path("experiments")
MARK = "<!-- Made by `python -m upo.study.index` from the first line of each YAML; do not edit below this line. -->\n"
QUESTION = "# Question:"


def index(folder: Path) -> str:
    """A section for each folder below `folder`, a row for each YAML in it: a link to the file, and its question."""
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (path.parent, path.name))
    return "".join(
        f"\n### {room.relative_to(folder)}/\n| YAML | question |\n|---|---|\n" + "".join(_rows(folder, files))
        for room, files in groupby(paths, key=lambda path: path.parent)
    )


def _rows(folder: Path, files: Iterator[Path]) -> Iterator[str]:
    for file in files:
        yield f"| [{file.stem}]({file.relative_to(folder)}) | {question(file).replace('|', '/')} |\n"


def question(file: Path) -> str:
    """What an experiment asks: the first line of its YAML.

    Raises:
        UserError: the first line is another one.
    """
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    if not first.startswith(QUESTION):
        raise UserError(f"{file}: the first line should be `{QUESTION}  what the experiment asks`")
    return first.removeprefix(QUESTION).strip()


def with_index(text: str, folder: Path) -> str:
    """The text of experiments/README.md with a fresh list."""
    return text.partition(MARK)[0] + MARK + index(folder)


def main(args: Sequence[str] | None = None) -> None:
    """Writes the list of all experiments at the end of experiments/README.md: each YAML and its question."""
    from upo.cli.command import ShortErrors

    ShortErrors(prog="python -m upo.study.index", description=main.__doc__).parse_args(args)
    readme = FOLDER / "README.md"
    with short_errors():
        if not readme.is_file():
            raise UserError(f"no {readme} here; run this command in the root of the repository")
        readme.write_text(with_index(readme.read_text(encoding="utf-8"), FOLDER), encoding="utf-8")


if __name__ == "__main__":
    main()
