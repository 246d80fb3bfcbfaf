"""Every source on damaged records: each is kept or counted, nothing hangs, and nothing but a sentence is raised."""

import copy
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from upo.data import sources
from upo.data.example import Example
from upo.data.report import DataReport, SourceReport
from upo.data.row import Row
from upo.data.source import Source
from upo.data.sources.__main__ import EXAMPLES
from upo.data.usable import LONGEST, check_numbers, usable_part
from upo.errors import UserError

pytestmark = pytest.mark.turns(2)

RECORDS: dict[str, list[dict[str, Any]]] = {}
for _line in EXAMPLES.read_text(encoding="utf-8").splitlines():
    RECORDS.setdefault(json.loads(_line)["source"], []).append(json.loads(_line)["record"])
FLAT = [
    {"message_id": str(i), "parent_id": parent, "role": role, "text": f"t{i}", "lang": "en", "rank": rank}
    for i, parent, role, rank in (
        (1, None, "prompter", None), (2, "1", "assistant", 0), (3, "1", "assistant", 1), (4, "2", "prompter", None),
        (5, "4", "assistant", 0), (6, "4", "assistant", 1),
    )
]  # fmt: skip
RECORDS["oasst"].append(FLAT[0])
GROUPED = ("hanna", "odpo", "topical_chat", "helpsteer2")
"""One response a record: a bad record is left out of its list, which the report counts as altered."""
SEVERAL = ("oasst", "odpo_tldr", "tot_game24", "tot_game24_chain")
"""A record gives any number of examples, or none."""

DEEP: Any = "x"
for _ in range(60):
    DEEP = [DEEP]
HOSTILE: list[Any] = [
    None, "", " ", "x", True, False, 0, 1, -1, 1.0, 2.5, float("nan"), float("inf"), 10**400, [], {}, [None], [[]],
    [{}], DEEP, {"x": None}, "\ud800", "\x00", "[", '[{"role": "user", "content": null}]', '{"from": 3, "value": 4}',
    "²", ["a"], [1, 2], [["a", "b"]], [{"role": "user", "content": "x"}], [{"role": "assistant", "content": ""}],
    [{"role": ["x"], "content": {"x": 1}}], {"role": "assistant", "content": [{"type": "image"}]}, b"x", "1" * 50,
    [{"role": "assistant", "tool_calls": [{"function": 3}]}], {"from": "gpt", "value": "x", "name": []}, "tie", 7,
]  # fmt: skip


def mutated(record: dict[str, Any], rng: Random) -> dict[str, Any]:
    """One to three places of a record, at any depth, replaced, removed, doubled or put elsewhere."""
    record = copy.deepcopy(record)
    for _ in range(rng.randint(1, 3)):
        holders: list[Any] = [record]
        for holder in holders:
            inner = holder.values() if isinstance(holder, dict) else holder
            holders += [x for x in inner if isinstance(x, dict | list) and len(holders) < 200]
        holder = rng.choice(holders)
        if not holder:
            continue
        place = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        how = rng.random()
        if how < 0.7:
            holder[place] = copy.deepcopy(rng.choice(HOSTILE))
        elif how < 0.85:
            del holder[place]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[place]))
        else:
            names = ["system", "tools", "tool_calls", "question", "messages", "reasoning_content", "images", "input"]
            holder[rng.choice(names)] = copy.deepcopy(rng.choice([holder[place], *HOSTILE]))
    return record


def _turns(example: Example) -> tuple[dict[str, Any], ...]:
    return () if isinstance(example.prompt, str) else example.prompt


class Witness(SourceReport):
    """Remembers for which records something was counted."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: Counter[str] = Counter()

    def drop(self, reason: str, where: str = "", number: int = 1) -> None:
        self.lost[where] += number
        super().drop(reason, where, number)

    def count(self, reason: str, where: str = "", number: int = 1) -> None:
        self.lost[where] += number
        super().count(reason, where, number)


def accounted(name: str, records: list[dict[str, Any]]) -> None:
    rows = [Row(record, f"made:{i}") for i, record in enumerate(records)]
    report = Witness()
    made = list(getattr(sources, name)(iter(rows), report))
    lost = {where.partition(",")[0] for where in report.lost}
    if name in GROUPED:
        assert sum(len(e.responses) for e in made) + report.altered.total() == len(rows)
    elif name not in SEVERAL:
        assert len(made) + report.dropped.total() == len(rows)
        assert {e.where for e in made}.isdisjoint(report.lost)
    else:
        kept = {e.where.partition(",")[0] for e in made}
        texts = {r.text for e in made for r in e.responses} | {m["content"] for e in made for m in _turns(e)}
        parents = {str(dict.get(r.data, "message_id")): r for r in reversed(rows)}

        def known(row: Row | None) -> bool:
            return row is not None and (row.where in kept | lost or str(dict.get(row.data, "text")) in texts)

        def root(row: Row) -> str:
            for _ in rows:
                row = parents.get(str(dict.get(row.data, "parent_id")), row)
            return row.where

        # a message at the end of a tree is counted with the list that it would belong to: no tree is lost
        assert {root(row) for row in rows} == {root(row) for row in rows if known(row)}
    for example in made:
        before = report.dropped.total()
        checked = usable_part(check_numbers(example, name, 1), report)
        assert isinstance(checked, Example) != (report.dropped.total() > before)


NAMES = sorted(RECORDS)


@pytest.mark.parametrize("name", NAMES)
def test_every_record_is_kept_or_counted(name: str) -> None:
    rng = Random(name)
    for _ in range(60):
        accounted(name, [mutated(rng.choice(RECORDS[name]), rng) for _ in range(6)])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_record_is_kept_or_counted_at_length(name: str) -> None:
    rng = Random(f"{name} at length")
    for _ in range(3000):
        accounted(name, [mutated(rng.choice(RECORDS[name]), rng) for _ in range(rng.randint(1, 12))])


@pytest.mark.parametrize("seed", range(40))
def test_messages_of_any_parents_are_kept_or_counted(seed: int) -> None:
    """Circles, two messages of one name, parents that are not there."""
    rng = Random(seed)
    messages = [dict(m) for m in FLAT * 2]
    for m in messages:
        if rng.random() < 0.4:
            m["parent_id"] = rng.choice(["1", "2", "3", "4", "5", "6", "9", None, 3])
        if rng.random() < 0.3:
            m["message_id"] = rng.choice(["1", "2", "7", "8", 5, []])
    accounted("oasst", messages)


@pytest.mark.parametrize("replies", [None, [], [{}], [{"role": "assistant", "text": "a"}], "x"])
def test_a_tree_without_lists_is_counted(replies: Any) -> None:
    report = SourceReport()
    tree = {"prompt": {"role": "prompter", "text": "q", "replies": replies}}
    assert not list(sources.oasst([Row(tree, "made:1")], report))
    assert report.dropped and set(report.places.values()) == {"made:1"}


def test_a_huge_line_is_refused_before_it_is_tokenised(tmp_path: Path) -> None:
    file = tmp_path / "huge.jsonl"
    short = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    with file.open("w") as stream:
        for record in (short, {**short, "chosen": "word " * 10_000_000}):
            stream.write(json.dumps(record) + "\n")
    report = DataReport()
    assert len(Source("trl", path=str(file)).examples(report)) == 1
    assert report.of("trl").dropped == {f"text of more than {LONGEST:,} characters": 1}
    assert report.of("trl").places == {f"text of more than {LONGEST:,} characters": f"{file}:2"}


def test_damaged_files_are_one_sentence(tmp_path: Path) -> None:
    """Bytes of a file changed, removed or added: examples, or a sentence that names the file."""
    rng = Random(0)
    lines = "".join(json.dumps(r) + "\n" for r in RECORDS["trl"] * 3).encode()
    file = tmp_path / "damaged.jsonl"
    for _ in range(200):
        damaged = bytearray(lines)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(damaged))
            damaged[place : place + rng.randint(0, 3)] = bytes(rng.randrange(256) for _ in range(rng.randint(0, 3)))
        file.write_bytes(damaged)
        report = DataReport()
        try:
            examples = Source("trl", path=str(file)).examples(report)
        except UserError as error:
            assert file.name in str(error) and len(str(error).split("\n")) <= 3
        else:
            number = sum(bool(line.strip()) for line in damaged.split(b"\n"))
            assert len(examples) + report.of("trl").dropped.total() == number
