"""The report: whole, self-contained, and unharmed by what texts contain."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from upo.data.example import Example, Response
from upo.evaluation.report import differences, write_report
from upo.evaluation.tables import SYSTEMS
from upo.metrics.figures import is_bound
from upo.metrics.meanings import meaning
from upo.runtime.markdown import cell, fenced

ASKED = [
    Example("What is 1 | 2?\nSay it.", (Response("x"),), source="made"),
    Example(({"role": "user", "content": "<script>alert(1)</script>"},), (Response("x"),), source="made"),
]
TEXTS = {"policy": ["a | b\nc", "<b>bold</b> & more"], "chosen": ["fine", "`code`"]}
VALUES = {
    "policy": [{"rewards/mood": 0.1, "words": 3.0, "kl": 0.2}, {"rewards/mood": 0.4, "words": 3.0, "kl": -0.1}],
    "chosen": [{"rewards/mood": 0.5, "words": 1.0}, {"rewards/mood": 0.5, "words": 1.0}],
}
FIGURES = {
    "policy/win_rate_vs_chosen": 0.5,
    "policy/win_rate_vs_chosen_low": 0.1,
    "policy/win_rate_vs_chosen_high": 0.9,
    "policy/win_rate_vs_chosen_n": 2.0,
    "policy/kl": 0.05,
    "policy/kl_se": 0.15,
    "chosen/rewards/mood": 0.5,
    "val/rewards/accuracies": 0.75,
    "val/rewards/accuracies_n": 4.0,
    "tasks/arc/acc": 0.25,
    "tasks/arc/acc_se": 0.01,
}


class Cells(HTMLParser):
    """Text of the table cells, and all tags with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a report was written."""
    folder = tmp_path_factory.mktemp("run")
    write(folder)
    return folder


def write(folder: Path) -> None:
    write_report(folder, FIGURES, ASKED, TEXTS, VALUES, {"rewards/margins": [1.0, -0.5, 2.0, 0.3]}, {"seed": 0})


def test_html_is_one_file_and_shows_texts_as_they_are(folder: Path) -> None:
    page = Cells()
    page.feed((folder / "report.html").read_text())
    assert {"script", "b", "link"}.isdisjoint(tag for tag, _ in page.tags)
    links = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href")]
    assert len(links) == 1 and str(links[0]).startswith("data:image/png;base64,")
    for text in (*TEXTS["policy"], *TEXTS["chosen"], ASKED[0].prompt, "0.500 (0.100 to 0.900)", "0.750", "seed"):
        assert any(text in cell for cell in page.cells), text
    assert (folder / "evaluation.png").read_bytes()[:4] == b"\x89PNG"


def test_settings_and_curves_of_the_run_stand_in_the_report(tmp_path: Path) -> None:
    """Also in a report that lies elsewhere; texts have their scores beside them."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir(), elsewhere.mkdir()
    policy = {"class_path": "upo.models.policy.Policy", "init_args": {"path": "start", "dtype": None}}
    config = {
        "seed_everything": 3,
        "model": {"class_path": "upo.methods.dpo.DPO", "init_args": {"policy": policy, "beta": 0.25}},
        "data": {"sources": [{"name": "hh", "options": {}}], "rewards": {}, "overlong": ["drop"]},
        "trainer": {"max_steps": 7, "accelerator": "cpu"},
    }
    (run / "config.yaml").write_text(json.dumps(config))
    (run / "curves.png").write_bytes(b"a picture")
    write_report(elsewhere, FIGURES, ASKED, TEXTS, VALUES, {"rewards/margins": [1.0, -0.5]}, {"seed": 0}, run=run)
    text = (elsewhere / "report.md").read_text()
    assert "![training curves](../run/curves.png)" in text
    table = text.partition("## Training settings")[2].strip().splitlines()[2:]
    assert table == [
        "| method | DPO |", "| method.policy | Policy |", "| method.policy.path | start |", "| method.beta | 0.25 |",
        "| data.sources\\[0\\].name | hh |", "| data.overlong | drop |", "| trainer.max_steps | 7 |",
        "| seed | 3 |",
    ]  # fmt: skip
    assert (elsewhere / "report.html").read_text().count("data:image/png;base64,") == 2
    assert "a \\| b<br>c<br>(rewards/mood 0.1)" in text


def test_few_values_are_bars_and_whole_numbers_have_bins_of_their_own(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from upo.evaluation.report_pictures import _distributions

    axis = Figure().subplots()
    rows = {"policy": [0.0, 1.0, 1.0], "chosen": [0.0, 0.0, 1.0]}
    _distributions(axis, "x", {name: [{"x": x} for x in column] for name, column in rows.items()})
    assert [patch.get_height() for patch in axis.patches] == [1, 2, 2, 1]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "1"]
    axis = Figure().subplots()
    _distributions(axis, "x", {"policy": [{"x": float(x)} for x in (*range(60), 0)]})
    (outline,) = axis.patches
    assert set(outline.get_xy()[:, 0]) == {-0.5 + 3 * i for i in range(21)}, "three whole numbers each"


def test_markdown_tables_keep_their_columns(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "![figures](evaluation.png)" in text and "0.250 (standard error 0.010)" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert "a \\| b<br>c" in text and "<script>" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[here](http://evil.example)", r"\[here\](http:\/\/evil.example)"),
        ("![x](https://evil.example/x.png)", r"!\[x\](https:\/\/evil.example/x.png)"),
        ("www.evil.example", r"www\.evil.example"),
        ("see WWW.evil.example", r"see WWW\.evil.example"),
        ("[x]: ftp://evil.example", r"\[x\]: ftp:\/\/evil.example"),
        (r"\[x](y)", r"\\\[x\](y)"),
        ("a\\|b", r"a\\\|b"),
        ("<http://evil.example>", r"&lt;http:\/\/evil.example&gt;"),
        ("1 // 2, and/or; awww. yes", "1 // 2, and/or; awww. yes"),
    ],
)
def test_texts_make_no_links(text: str, shown: str) -> None:
    """Neither in a link's notation nor where GitHub makes one of a plain address."""
    assert cell(text) == shown


def test_a_report_has_one_picture_and_no_link(tmp_path: Path) -> None:
    bad = "[free](http://evil.example) ![x](http://evil.example/x.png) <a href='http://evil.example'>y</a>"
    texts = {"policy": [bad, bad], "chosen": [bad, bad]}
    asked = [Example(bad, (Response(bad),), source="made")] * 2
    write_report(tmp_path, FIGURES, asked, texts, VALUES, {"rewards/margins": [1.0, -0.5]}, {bad: bad})
    text = (tmp_path / "report.md").read_text()
    assert re.findall(r"(?<!\\)\]", text) == ["]"] and text.count("](evaluation.png)") == 1
    assert "://" not in text and "<a" not in text and text.count("free") == 8


def test_a_fence_is_longer_than_what_it_holds() -> None:
    assert fenced("a") == "```\na\n```"
    assert fenced("```\n[x](y)\n````\n", "yaml").splitlines()[0] == "`````yaml"


def test_alpaca_evals_format(folder: Path) -> None:
    outputs = json.loads((folder / "alpaca_eval.json").read_text())
    assert outputs[0] == {
        "instruction": ASKED[0].prompt, "output": "a | b\nc", "generator": folder.name, "dataset": "made"
    }  # fmt: skip
    assert outputs[1]["instruction"] == "<script>alert(1)</script>"


def test_the_same_figures_give_the_same_files(folder: Path) -> None:
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    write(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == first


def test_every_row_says_what_it_is(tmp_path: Path) -> None:
    """Of all figures that old runs have, and what only some runs have; an unknown one stays without a word."""
    known = set()
    for file in (Path(__file__).parent.parent / "fixtures/before_the_move/made").glob("*/evaluation.json"):
        known |= {name for name in json.loads(file.read_text())["metrics"] if not is_bound(name)}
    names = {name.partition("/")[2] if name.startswith(SYSTEMS) else name for name in known}
    names |= {"violations/unsafe_k10_eps0.1", "categories/unsafe/hate", "objective", "unparsed_vs_chosen"}
    names |= {"order_flips_vs_rival", "rewards/safety", "val/rewards/accuracies/hh", "tasks/arc/acc"}
    assert len(names) > 30
    for name in names:
        better, sentence = meaning(name)
        assert sentence and better in ("higher", "lower", ""), name
    assert meaning("kl_of_nothing") == ("", "")
    assert meaning("win_rate_vs_chosen").better == "higher" and "chosen's" in meaning("win_rate_vs_chosen").sentence


def test_differences_are_paired_by_prompt(tmp_path: Path) -> None:
    """Prompts differ much more than the two responses to each: the paired interval is narrow."""
    reference = [{"objective": float(i % 7), "words": 3.0} for i in range(40)]
    policy = [{"objective": row["objective"] + 0.5 + 0.01 * (i % 3), "words": 3.0} for i, row in enumerate(reference)]
    (table,) = differences({"policy": policy, "reference": reference})
    head, row = table.rows
    assert head[:3] == ["", "difference", "prompts"] and row[0] == "objective" and row[2] == "40"
    mean, low, high = map(float, re.findall(r"[+-]\d\.\d+", row[1]))
    assert mean == pytest.approx(0.51, abs=0.01) and 0.5 <= low <= mean <= high <= 0.52
    assert differences({"policy": policy}) == []
