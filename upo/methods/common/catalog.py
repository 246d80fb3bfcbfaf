"""The list of methods, and the description of one, read from the methods' docstrings and signatures."""

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
    """A method with the facts that its file states about it."""

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
        match = re.search(r"https?://[^\s)>,;]+", self.module)
        return match.group().rstrip(".:") if match else ""

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

    methods = {e.name.lower(): e for e in entries()}
    if name.lower() not in methods:
        near = difflib.get_close_matches(name.lower(), methods, 1)
        hint = f"did you mean {methods[near[0]].name}?" if near else "`python -m upo.methods` lists them"
        raise UserError(f"no method is called {name}; {hint}")
    return methods[name.lower()]


def markdown() -> str:
    """The table of upo/methods/README.md."""
    head = (
        "# Methods\n\nMade by `python -m upo.methods --write`; do not edit. "
        "`python -m upo.methods NAME` describes one: equation, arguments, and where their defaults come from.\n"
        "Columns: `data` is what an example must give, `reference` whether a reference is needed, `log-probs` whether\n"
        "the loss reads sums over a response's tokens or means.\n\n"
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
    "tokens; r = pi - ref; |y| = tokens of a response; sg = no gradient. Logarithms are natural: log-probs in nats.\n"
    "GLOBAL step: all data of one optimizer step, over all micro-batches and ranks."
)
SOURCES = (
    "Brackets say where a default comes from: (paper: x), (official code: x) the authors' own, (from knowledge: x)\n"
    "recalled and not confirmed, (ours) no source has a value. Verified: read in the paper or in the named code."
)
FOLDER = Path("experiments")
REPLACED = ("loss", "soft_loss", "coupled_loss")
"""Functions of a class that a subclass replaces; others (`terms`, ...) it extends."""


def describe(entry: Entry) -> Iterator[str]:
    """Paper, equations, data, an experiment and arguments with their defaults, as lines of text."""
    yield f"{entry.name}: {entry.title}\n"
    if more := "\n".join(inspect.cleandoc(entry.kind.__doc__ or "").splitlines()[1:]).strip():
        yield more + "\n"
    yield entry.module + "\n"
    for function in losses(entry.kind):
        yield f"{function.__name__}:\n  " + (inspect.getdoc(function) or "").replace("\n", "\n  ") + "\n"
    yield f"{SYMBOLS}\n{SOURCES}\n"
    yield f"Data: each example gives a {entry.wants}. Reference: {entry.reference}. Log-probs: {entry.log_probs}."
    if path := example(entry.name):
        yield f"Try it: python -m upo.fit --config {path}"
    yield "\nArguments (beside policy, reference, optimizer, scheduler), in YAML below `model.init_args`:"
    shown: set[str] = set()
    for base in entry.kind.__mro__:
        if base is Method:
            break
        if "__init__" in vars(base):
            yield from _arguments(base, shown)


def losses(kind: type[Method]) -> list[Callable[..., object]]:
    """The pure loss functions that a method's class calls, before those that only its parents call."""
    functions: dict[str, Callable[..., object]] = {}
    for base in kind.__mro__[: kind.__mro__.index(Method)]:
        for name, member in vars(base).items():
            if not inspect.isfunction(member) or (name in REPLACED and getattr(kind, name) is not member):
                continue
            function = inspect.unwrap(member)
            for used in function.__code__.co_names:
                if used.endswith("_loss") and inspect.isfunction(loss := function.__globals__.get(used)):
                    functions.setdefault(used, loss)
    return list(functions.values())


def example(name: str) -> Path | None:
    """An experiment that trains the method, if the current folder has `experiments/`: that of the shortest name.

    Those that need another command first (`first upo.generate ...`) or train a large model come last; studies are left
    out.
    """
    names = re.compile(rf"^  class_path: (upo\.methods\.(\w+\.)?)?{name}$", re.M)
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*/*.yaml"))}
    paths = [path for path, text in texts.items() if names.search(text)]
    dear = "# Command:   first", "UPO_SMOLLM2"
    return min(paths, key=lambda path: (any(x in texts[path] for x in dear), len(path.name)), default=None)


def _arguments(kind: type, shown: set[str]) -> Iterator[str]:
    """Arguments that `kind.__init__` documents, with defaults, except those in `shown`, to which they are added."""
    text = (inspect.getdoc(kind.__init__) or "").partition("Args:\n")[2].rstrip()
    parameters = inspect.signature(kind.__init__).parameters
    for name, description in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", text, flags=re.M):
        if name not in shown and name in parameters:
            shown.add(name)
            default = parameters[name].default
            yield (
                f"    {name}: {description}"
                if default is inspect.Parameter.empty
                else f"    {name} (default {_as_in_yaml(default)}): {description}"
            )


def _as_in_yaml(default: object) -> str:
    """A default as in a YAML: objects by the names of their classes."""
    if default is None or isinstance(default, bool | int | float | str | tuple | dict):
        return repr(default)
    return type(default).__name__.removeprefix("LazyInstance_")
