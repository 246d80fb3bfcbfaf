"""Shipped YAMLs, each with one mistake that a seed chooses: accepted, or refused in a sentence that names the cause.

What is tried is all of a run before data and weights are read: reading the YAML, parsing it, making method and data.
"""

import copy
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from attrs import frozen

from upo.check.resolve import Resolved
from upo.cli.stages import as_configs
from upo.errors import short_errors

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(p for p in (ROOT / "experiments").rglob("*.yaml") if "\nmodel:" in p.read_text(encoding="utf-8"))
SLOWEST = 20
"""Seconds of one config; an endless loop is the file's timeout."""

Place = tuple[dict | list, Any]
"""A container of a config, and a key or an index in it."""


@frozen
class Mutant:
    """A config with one mistake."""

    what: str
    text: bytes
    words: tuple[str, ...]
    """One of them stands in what is said where it is refused."""


def places(node: Any) -> Iterator[Place]:
    """Every key and index of a config."""
    for key, inner in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(inner, dict | list):
            yield from places(inner)


def misspelled(word: str, rng: random.Random) -> str:
    i = rng.randrange(len(word))
    return rng.choice([word[:i] + word[i + 1 :], word[:i] + "q" + word[i:], word + "s", word.upper()]) or "q"


TEXTS = ["high", "", " ", "x" * 5000, "\x07", "ü/ß", "../..", "[1, 2", "{", "!!python/name:os.system"]
CLASSES = ["upo.methods.Nothing", "no_such_package.Method", "os.system", "torch.nn.Linear", "upo", ".", "a..b"]
CLASSES += ["upo.methods.dpo.DPO"]
HOSTILE: dict[str, Callable[[Any, random.Random], Any]] = {
    "a list": lambda old, rng: [old],
    "an empty list": lambda old, rng: [],
    "an empty mapping": lambda old, rng: {},
    "a mapping": lambda old, rng: {"a": old},
    "null": lambda old, rng: None,
    "a text": lambda old, rng: rng.choice(TEXTS),
    "a switch": lambda old, rng: not old,
    "a number": lambda old, rng: rng.choice([0, -1, 3, 0.5, -0.5]),
    "no finite number": lambda old, rng: rng.choice([float("inf"), float("-inf"), float("nan")]),
    "an enormous number": lambda old, rng: rng.choice([10**30, -(10**30), 10**400, 1e308, 5e-324, 2**63]),
    "an interpolation": lambda old, rng: rng.choice(
        ["${oc.env:NO_SUCH_VARIABLE_AT_ALL}", "${nowhere}", "${oc.env:}", "${", "${no_resolver:1}", "${model}", "${.}"]
    ),
    "a class path": lambda old, rng: rng.choice(CLASSES),
}  # fmt: skip


def other_value(config: Any, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """Another value somewhere."""
    node, key = rng.choice(list(places(config)))
    name = rng.choice(list(HOSTILE))
    old, node[key] = node[key], HOSTILE[name](node[key], rng)
    return f"{name} for {key}", (str(key), str(node[key])[:40], *names_of(old), *names_of(node[key]))


def names_of(value: Any) -> tuple[str, ...]:
    """What a message may name a value by."""
    if isinstance(value, dict):
        return tuple(x for key, inner in value.items() for x in (str(key), *names_of(inner)))
    if isinstance(value, list):
        return tuple(x for inner in value for x in names_of(inner))
    return tuple(word for word in re.split(r"[^\w]+", str(value)) if len(word) > 2)


def other_key(config: Any, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """A key that is misspelled."""
    node, key = rng.choice([(n, k) for n, k in places(config) if isinstance(n, dict)])
    wrong = misspelled(str(key), rng)
    node[wrong] = node.pop(key)
    return f"{wrong} for {key}", (wrong, str(key))


def missing(config: Any, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """A key or an entry that is left out."""
    node, key = rng.choice(list(places(config)))
    old = node.pop(key)
    return f"no {key}", (str(key), *names_of(old), "required")


def one_more(config: Any, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """A key that nobody knows."""
    node = rng.choice([n for n, _ in places(config) if isinstance(n, dict)])
    key = rng.choice(["loss_type", "qqq", "1", "class_path", "init_args", "dict_kwargs", "__class__", "items", ""])
    node[key] = rng.choice([None, 1, "DPO", {}])
    return f"{key!r} added", (key or "empty", *names_of(node))


def with_bytes(text: str, rng: random.Random) -> tuple[str, bytes, tuple[str, ...]]:
    """A file that is broken as a text."""
    lines = text.splitlines()
    i = rng.randrange(len(lines))
    j = rng.choice([n for n, line in enumerate(lines) if re.match(r"\s*\w+:", line)])
    changed = {
        "tabs": "\n".join([*lines[:i], "\t" + lines[i], *lines[i + 1 :]]),
        "a line twice": "\n".join([*lines[: j + 1], *lines[j:]]),
        "an open bracket": "\n".join([*lines[:i], lines[i] + rng.choice(["[", "{", "'", '"', "|"]), *lines[i + 1 :]]),
        "cut": text[: rng.randrange(len(text))],
        "indented": "\n".join([*lines[:i], "   " + lines[i], *lines[i + 1 :]]),
        "a circle": text + "\nzz: &z [*z]\n",
        "a deep list": text + "\nzz: " + "[" * 3000 + "]" * 3000 + "\n",
        "another document": text + "\n---\nmodel: DPO\n",
        "a tag": text + "\nzz: !!python/object/apply:os.getcwd []\n",
        "an alias of nothing": text + "\nzz: *nothing\n",
        "nothing": "",
    }
    raw = {
        "a BOM": b"\xef\xbb\xbf" + text.encode(),
        "UTF-16": text.encode("utf-16"),
        "bytes": bytes(rng.randrange(256) for _ in range(200)),
        "a zero": text[:40].encode() + b"\0" + text[40:].encode(),
        "Windows' lines": text.replace("\n", "\r\n").encode(),
    }
    made = {name: x.encode() for name, x in changed.items()} | raw
    name = rng.choice(list(made))
    last = (changed["cut"].splitlines() or [""])[-1]
    near = tuple(x for line in (lines[i], lines[j], last) for x in names_of(line))
    return name, made[name], ("mutated.yaml", "zz", "twice", *near)


def mutant(seed: int) -> tuple[Path, Mutant]:
    """Which experiment, and what becomes of it."""
    rng = random.Random(seed)
    file = rng.choice(FILES)
    text = file.read_text(encoding="utf-8")
    if rng.random() < 0.25:
        what, raw, words = with_bytes(text, rng)
        return file, Mutant(what, raw, words)
    config = copy.deepcopy(yaml.safe_load(text))
    what, words = rng.choice([other_value, other_value, other_value, other_key, missing, one_more])(config, rng)
    return file, Mutant(what, yaml.safe_dump(config, allow_unicode=True, sort_keys=False).encode(), words)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all experiments, so that a mutant finds its earlier stages and what is laid under it."""
    folder = tmp_path_factory.mktemp("mutants")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("UPO_SHARED", os.environ.get("UPO_SHARED") or str(ROOT.parent / "shared"))
        yield folder


def fault(seed: int, here: Path, capsys: pytest.CaptureFixture) -> str | None:
    """What is wrong with the answer to a mutant; None where it is accepted, or refused as it should be."""
    source, own = mutant(seed)
    file = here / source.relative_to(ROOT).parent / "mutated.yaml"
    file.write_bytes(own.text)
    started, code = time.monotonic(), 0
    try:
        with short_errors():
            Resolved(as_configs([str(file.relative_to(here))]))
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        return f"seed {seed}, {source.name}, {own.what}: {type(error).__name__}: {error}"
    finally:
        file.unlink()
    said = capsys.readouterr().err.strip()
    told = f"seed {seed}, {source.name}, {own.what}: {said}"
    if (seconds := time.monotonic() - started) > SLOWEST:
        return f"{told} after {seconds:.0f} s"
    if code == 0:
        return None
    refusal = [line for line in said.splitlines() if not line.startswith("after: ")]
    if code != 2 or len(refusal) > 3 or not refusal[0].startswith("error: ") or "Traceback" in said:
        return f"{told} (exit code {code})"
    if not any(word and word.lower() in said.lower() for word in own.words):
        return f"{told}: the cause is not named"
    return None


def faults(seeds: Iterator[int], seconds: float, here: Path, capsys: pytest.CaptureFixture) -> tuple[int, list[str]]:
    """How many mutants were tried within a time, and what was wrong."""
    end, tried, found = time.monotonic() + seconds, 0, []
    for seed in seeds:
        if time.monotonic() > end:
            break
        tried += 1
        if (wrong := fault(seed, here, capsys)) is not None:
            found.append(wrong)
    return tried, found


@pytest.mark.slow
def test_a_mistake_in_a_config_gets_a_sentence(here: Path, capsys: pytest.CaptureFixture) -> None:
    """A minute, always the same mistakes: as many as the machine gets through."""
    tried, found = faults(iter(range(100_000, 200_000)), 60, here, capsys)
    assert tried > 20 and not found, "\n".join(found)


@pytest.mark.nightly
def test_many_mistakes_in_configs(here: Path, capsys: pytest.CaptureFixture) -> None:
    """Nine minutes; each day other mistakes."""
    first = int(time.time() // 86400) * 100_000
    tried, found = faults(iter(range(first, first + 100_000)), 540, here, capsys)
    assert tried > 200 and not found, "\n".join(found)
