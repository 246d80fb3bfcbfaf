"""The records that upo/data/README.md shows go through the sources that it names."""

import json
import re
from pathlib import Path

import pytest
import yaml

from upo.data import sources
from upo.data.lines import Row
from upo.data.report import SourceReport
from upo.data.source import usable_part
from upo.data.sources.__main__ import EXAMPLES, main

README = (Path(__file__).parents[2] / "upo/data/README.md").read_text(encoding="utf-8")
RECORDS = re.findall(r"^\| `(\{.*\})` \| `(\w+)` \|", README, re.M)


def test_every_source_is_shown() -> None:
    assert {name for _, name in RECORDS} | {"world"} == set(sources.__all__)


def test_the_command_shows_the_same_records(capsys: pytest.CaptureFixture) -> None:
    shown = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]
    assert [(x["source"], x["record"]) for x in shown] == [(name, json.loads(record)) for record, name in RECORDS]
    main([])
    listed = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{listed}" for name in sources.__all__)
    assert all(json.dumps(x["record"], ensure_ascii=False) in listed for x in shown)
    main(["trl"])
    assert "chosen: column of the better response" in capsys.readouterr().out


@pytest.mark.parametrize(("record", "name"), RECORDS, ids=[f"{name}-{i}" for i, (_, name) in enumerate(RECORDS)])
def test_a_record_becomes_an_example(record: str, name: str) -> None:
    report = SourceReport()
    examples = list(getattr(sources, name)([Row(json.loads(record), "README")], report))
    assert examples and all(usable_part(example, report) is not None for example in examples)
    assert not report.dropped and not report.altered, (report.dropped, report.altered)


def test_columns_have_the_names_that_the_options_give() -> None:
    (line,) = re.findall(r"options: (\{prompt: .*\})\}", README)
    report = SourceReport()
    row = Row({"question": "Name a fruit.", "good": "An apple.", "bad": "A stone."}, "README")
    (example,) = sources.trl([row], report, **yaml.safe_load(line))
    assert [r.text for r in example.responses] == ["An apple.", "A stone."]
    assert example.prompt == ({"role": "user", "content": "Name a fruit."},)


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
