"""One command for all entries: `upo fit experiments/quickstart/quickstart.yaml`; `upo --help` lists them.

`upo NAME ...` does what `python -m upo.NAME ...` does. Nothing heavy is imported before the entry is chosen.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

from upo.errors import did_you_mean


class Entry(NamedTuple):
    """A subcommand: its module has a `main(args)`."""

    module: str
    purpose: str
    example: str


ENTRIES = {
    "fit": Entry("upo.fit", "train and evaluate a run", "experiments/quickstart/quickstart.yaml"),
    "check": Entry("upo.check.__main__", "try a first step, plan memory", "experiments/quickstart/quickstart.yaml"),
    "evaluate": Entry("upo.evaluate", "evaluate a run on held-out prompts", "runs/quickstart --prompts 200"),
    "compare": Entry("upo.compare", "tables and fronts of finished runs", "runs/quickstart runs/another"),
    "ablate": Entry("upo.ablate", "train and compare a study's runs", "experiments/studies/stories/study.yaml"),
    "generate": Entry("upo.generate", "sample and score preference pairs", "--config prompts_and_judge.yaml"),
    "export": Entry("upo.export", "write a Hugging Face folder", "runs/quickstart exported"),
    "merge": Entry("upo.merge", "average several models", "runs/a runs/b --weights 0.7 0.3 --out soup"),
    "methods": Entry("upo.methods.__main__", "list methods, or describe one", "SimPO"),
    "rewards": Entry("upo.rewards.__main__", "list rewards, or survey data", "--help"),
    "bench": Entry("upo.bench.__main__", "measure speed against TRL", "--suite short"),
}

COMPLETION = "completion"
"""The subcommand that is no entry: it prints what a shell needs to complete the others."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the entry that the first word names with the words behind it."""
    words = list(sys.argv[1:] if args is None else args)
    name, rest = (words[0], words[1:]) if words else ("", [])
    if name in ENTRIES:
        import_module(ENTRIES[name].module).main(rest)
    elif name == COMPLETION:
        print(completion(rest), end="")
    elif name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        from importlib.metadata import version

        print(f"upo {version('upo')}")
    elif not name:
        _refuse(usage())
    else:
        hint = did_you_mean(name, [*ENTRIES, COMPLETION])
        _refuse(f"error: `{name}` is no subcommand; {hint}\nsee upo --help")


def usage() -> str:
    """One screen: a line and an example for each entry."""
    lines = [f"  {name:<9} {entry.purpose:<35} upo {name} {entry.example}" for name, entry in ENTRIES.items()]
    return "\n".join(
        [
            "usage: upo NAME ...   (also python -m upo.NAME ...)",
            "",
            "Preference optimization of language models.",
            "",
            *lines,
            "",
            "upo NAME --help shows the options of one.",
            "upo --version prints the version.",
            f'eval "$(upo {COMPLETION} bash)" lets bash complete names and files.',
        ]
    )


SCRIPT = """\
_upo() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} name=${{COMP_WORDS[1]}} IFS=$'\\n'
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W $'{names}' -- "$word"))
    elif [[ $name == {completion} ]]; then
        COMPREPLY=($(compgen -W bash -- "$word"))
    elif [[ $name == @(fit|check|ablate|rewards) ]]; then
        COMPREPLY=($(compgen -f -X '!*.yaml' -- "$word"; compgen -f -X '!*.yml' -- "$word"; compgen -d -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _upo upo
"""
"""For bash: names of entries, then YAMLs where an entry reads them; it starts no Python."""


def completion(words: Sequence[str]) -> str:
    """The script that `eval "$(upo completion bash)"` in ~/.bashrc reads."""
    if list(words) != ["bash"]:
        _refuse('error: only bash is known; put this into ~/.bashrc: eval "$(upo completion bash)"')
    return SCRIPT.format(names="\\n".join([*ENTRIES, COMPLETION]), completion=COMPLETION)


def _refuse(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
