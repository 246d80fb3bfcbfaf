"""What methods there are: a line each, and everything about one, read from the methods themselves."""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

import upo.methods
from upo.errors import UserError
from upo.methods.common.base import Method


@frozen
class Entry:
    """A method as its file describes it."""

    name: str
    kind: type[Method]

    @property
    def module(self) -> str:
        return inspect.getdoc(inspect.getmodule(self.kind)) or ""

    @property
    def title(self) -> str:
        return (self.kind.__doc__ or "").strip().splitlines()[0].rstrip(".")

    @property
    def link(self) -> str:
        found = re.search(r"https?://[^\s)>,;]+", self.module)
        return found.group().rstrip(".:") if found else ""

    @property
    def batch(self) -> str:
        return type(self.kind.view).__name__.removesuffix("View").lower()

    @property
    def wants(self) -> str:
        return self.kind.view.wants

    @property
    def reference(self) -> str:
        return "no" if self.kind.needs.reference is None else "yes"

    @property
    def log_probs(self) -> str:
        return "mean" if self.kind.length_normalized else "sum"

    @property
    def file(self) -> str:
        return self.kind.__module__.rpartition(".")[2] + ".py"


def entries() -> list[Entry]:
    return [Entry(name, getattr(upo.methods, name)) for name in sorted(upo.methods.__all__, key=str.lower)]


def find(name: str) -> Entry:
    """The method called `name`, whatever the case of its letters."""
    import difflib

    every = {e.name.lower(): e for e in entries()}
    if name.lower() not in every:
        near = difflib.get_close_matches(name.lower(), every, 1)
        hint = f"did you mean {every[near[0]].name}?" if near else "`python -m upo.methods` lists them"
        raise UserError(f"no method is called {name}; {hint}")
    return every[name.lower()]


def markdown() -> str:
    """The table of upo/methods/README.md."""
    head = (
        "# Methods\n\nMade by `python -m upo.methods --write`; do not edit. "
        "`python -m upo.methods NAME` shows one with its equation and defaults.\n\n"
        "| method | what | paper | data | reference | log-probs | file |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(
        f"| {e.name} | {e.title.replace('|', '/')} | {_short(e.link)} | {e.batch} | {e.reference} | {e.log_probs} "
        f"| [{e.file}]({e.file}) |\n"
        for e in entries()
    )


def _short(link: str) -> str:
    return f"[{link.rstrip('/').rpartition('/')[2]}]({link})" if link else ""


SYMBOLS = (
    "Symbols: y_w, y_l = chosen, rejected response (w, l); pi, ref = log-probs under policy, reference, summed over\n"
    "tokens; r = pi - ref; |y| = tokens of a response; sg = no gradient. Logarithms are natural: log-probs in nats."
)
FOLDER = Path("experiments")
REPLACED = ("loss", "soft_loss", "coupled_loss")
"""Methods that a subclass replaces rather than extends."""


def describe(entry: Entry) -> Iterator[str]:
    """Paper, equations, data, an experiment and arguments with their defaults, as lines of text."""
    yield f"{entry.name}: {entry.title}\n"
    if more := "\n".join(inspect.cleandoc(entry.kind.__doc__ or "").splitlines()[1:]).strip():
        yield more + "\n"
    yield entry.module + "\n"
    for function in losses(entry.kind):
        yield f"{function.__name__}:\n  " + (inspect.getdoc(function) or "").replace("\n", "\n  ") + "\n"
    yield SYMBOLS + "\n"
    yield f"Data: each example gives a {entry.wants}. Reference: {entry.reference}. Log-probs: {entry.log_probs}."
    if found := example(entry.name):
        yield f"Try it: python -m upo.fit --config {found}"
    yield "\nArguments (beside policy, reference, optimizer, scheduler), in YAML below `model.init_args`:"
    known: set[str] = set()
    for base in entry.kind.__mro__:
        if base is Method:
            break
        if "__init__" in vars(base):
            yield from _arguments(base, known)


def losses(kind: type[Method]) -> list[Callable[..., object]]:
    """The pure loss functions that a method calls, its own before its parents'."""
    found: dict[str, Callable[..., object]] = {}
    for base in kind.__mro__[: kind.__mro__.index(Method)]:
        for name, member in vars(base).items():
            if not inspect.isfunction(member) or (name in REPLACED and getattr(kind, name) is not member):
                continue
            function = inspect.unwrap(member)
            for used in function.__code__.co_names:
                if used.endswith("_loss") and inspect.isfunction(loss := function.__globals__.get(used)):
                    found.setdefault(used, loss)
    return list(found.values())


def example(name: str) -> Path | None:
    """An experiment that trains the method, where the repository's are at hand; the shortest name is the plainest.

    Those whose command begins with another one (`first upo.generate ...`) come last, studies are left out.
    """
    names = re.compile(rf"^  class_path: (upo\.methods\.(\w+\.)?)?{name}$", re.M)
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*/*.yaml"))}
    found = [path for path, text in texts.items() if names.search(text)]
    return min(found, key=lambda path: ("# Command:   first" in texts[path], len(path.name)), default=None)


def _arguments(kind: type, known: set[str]) -> Iterator[str]:
    """What `kind.__init__` documents and no subclass has said before, with defaults."""
    text = (inspect.getdoc(kind.__init__) or "").partition("Args:\n")[2].rstrip()
    parameters = inspect.signature(kind.__init__).parameters
    for name, said in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", text, flags=re.M):
        if name not in known and name in parameters:
            known.add(name)
            default = parameters[name].default
            yield (
                f"    {name}: {said}"
                if default is inspect.Parameter.empty
                else f"    {name} (default {_shown(default)}): {said}"
            )


def _shown(default: object) -> str:
    """A default as a YAML would have it: objects by their class."""
    if default is None or isinstance(default, bool | int | float | str | tuple | dict):
        return repr(default)
    return type(default).__name__.removeprefix("LazyInstance_")
