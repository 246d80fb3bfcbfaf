"""Win rates: whom a judge prefers, what cannot be read, intervals that cover, verdicts that survive."""

from pathlib import Path

import numpy as np
import pytest

from upo.data.example import Example, Response
from upo.evaluation.judging import by_judge
from upo.evaluation.measure import text_figures
from upo.evaluation.win_rates import by_reward, win_figures
from upo.judges import Judge, Verdict
from upo.metrics.intervals import wilson


class Longer(Judge):
    """Prefers more characters; cannot say anything about a text with a question mark."""

    def __init__(self, limit: int = 10**9):
        self.asked, self.limit = 0, limit

    def __call__(self, prompts, first, second):
        self.asked += len(prompts)
        if self.asked > self.limit:
            raise KeyboardInterrupt
        pairs = zip(first, second, strict=True)
        return [Verdict(None) if "?" in a + b else Verdict(0.5 * (1 + np.sign(len(a) - len(b)))) for a, b in pairs]

    def fingerprint(self) -> str:
        return "Longer"


def examples(n: int) -> list[Example]:
    return [Example(f"prompt {i}", (Response("x"),)) for i in range(n)]


def rows(n: int, **more: float) -> list[dict[str, float]]:
    return [{"words": 1.0, **more} for _ in range(n)]


def test_verdicts_by_prompt(tmp_path: Path) -> None:
    texts = {"policy": ["long", "a", "b?", "same"], "chosen": ["no", "bcd", "c", "size"], "rival": ["lo", "", "", ""]}
    values = {name: rows(4) for name in texts}
    by_judge(Longer(), examples(4), texts, values, tmp_path / "partial")
    assert [row.get("win_rate_vs_chosen") for row in values["policy"]] == [1.0, 0.0, None, 0.5]
    assert [row.get("ties_vs_chosen") for row in values["policy"]] == [0.0, 0.0, None, 1.0]
    assert [row["unparsed_vs_chosen"] for row in values["policy"]] == [0.0, 0.0, 1.0, 0.0]
    figures = text_figures(values, texts) | win_figures(values)
    assert figures["policy/win_rate_vs_chosen"] == 0.5 and figures["policy/win_rate_vs_chosen_n"] == 3
    assert figures["policy/unparsed_vs_chosen"] == 0.25 and figures["policy/ties_vs_chosen"] == pytest.approx(1 / 3)
    assert figures["policy/lc_win_rate_vs_chosen"] == 0.5 and figures["policy/lc_win_rate_vs_chosen_n"] == 3
    assert figures["policy/win_rate_vs_rival_n"] == 3 and not [n for n in figures if "vs_reference" in n]


def test_no_answer_at_all_gives_no_win_rate(tmp_path: Path) -> None:
    texts = {"policy": ["?", "?"], "chosen": ["a", "b"]}
    values = {name: rows(2) for name in texts}
    by_judge(Longer(), examples(2), texts, values, tmp_path / "partial")
    figures = text_figures(values, texts) | win_figures(values)
    assert figures["policy/unparsed_vs_chosen"] == 1.0
    assert not [name for name in figures if "win_rate" in name]


def test_an_interrupted_judge_is_not_asked_twice(tmp_path: Path) -> None:
    texts = {"policy": [f"text {i}" for i in range(150)], "chosen": ["other"] * 150}
    whole = {name: rows(150) for name in texts}
    by_judge(Longer(), examples(150), texts, whole, tmp_path / "whole")
    values = {name: rows(150) for name in texts}
    with pytest.raises(KeyboardInterrupt):
        by_judge(Longer(limit=128), examples(150), texts, values, tmp_path / "partial")
    judge = Longer()
    values = {name: rows(150) for name in texts}
    by_judge(judge, examples(150), texts, values, tmp_path / "partial")
    assert judge.asked == 150 - 128 and values == whole


def test_a_reward_judges_by_its_value() -> None:
    values = {
        "policy": [{"words": 1.0, "rewards/judge": x} for x in (0.1, 0.5, 0.9)],
        "reference": [{"words": 1.0, "rewards/judge": x} for x in (0.5, 0.5, 0.5)],
    }
    by_reward(values)
    assert [row["win_rate_vs_reference"] for row in values["policy"]] == [0.0, 0.5, 1.0]
    assert [row["ties_vs_reference"] for row in values["policy"]] == [0.0, 1.0, 0.0]


def test_win_rate_intervals_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated evaluations whose true win rate, ties counted half, is known: 95 % means 95 %."""
    monkeypatch.setattr("upo.evaluation.win_rates.length_controlled", lambda wins, *_: wilson(wins))  # has its own test
    rng = np.random.default_rng(3)
    hits = {"": 0, "_bootstrap": 0}
    times, truth = 200, 0.62 + 0.5 * 0.1
    for _ in range(times):
        wins = rng.choice([1.0, 0.5, 0.0], p=[0.62, 0.1, 0.28], size=80)
        values = {"policy": [{"words": 3.0, "win_rate_vs_chosen": x} for x in wins], "chosen": rows(80)}
        figures = win_figures(values) | text_figures(values, {"policy": [""], "chosen": [""]})
        for name in hits:
            start = f"policy/win_rate_vs_chosen{name}"
            hits[name] += figures[f"{start}_low"] <= truth <= figures[f"{start}_high"]
    assert all(0.91 <= hit / times <= 0.99 for hit in hits.values()), hits
