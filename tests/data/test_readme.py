"""The records that upo/data/README.md shows go through the sources that it names."""

import json
import re
from pathlib import Path

import pytest

from upo.data import sources
from upo.data.lines import Row
from upo.data.report import SourceReport
from upo.data.source import usable_part

README = (Path(__file__).parents[2] / "upo/data/README.md").read_text(encoding="utf-8")
RECORDS = re.findall(r"^\| `(\{.*\})` \| `(\w+)` \|", README, re.M)


def test_every_source_is_shown() -> None:
    assert {name for _, name in RECORDS} | {"world"} == set(sources.__all__)


@pytest.mark.parametrize(("record", "name"), RECORDS, ids=[f"{name}-{i}" for i, (_, name) in enumerate(RECORDS)])
def test_a_record_becomes_an_example(record: str, name: str) -> None:
    report = SourceReport()
    examples = list(getattr(sources, name)([Row(json.loads(record), "README")], report))
    assert examples and all(usable_part(example, report) is not None for example in examples)
    assert not report.dropped and not report.altered, (report.dropped, report.altered)


def test_the_source_of_ones_own_works() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(code, names)
    rows, report = (
        [{"question": "Name a fruit.", "good": "An apple.", "bad": "A stone."}, {"question": "Why?"}],
        SourceReport(),
    )
    (example,) = names["my_source"]([Row(row, "README") for row in rows], report)
    assert [r.text for r in example.responses] == ["An apple.", "A stone."]
    assert report.dropped == {"missing `good`": 1}
