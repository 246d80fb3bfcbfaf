"""Hand-worked values and directions of the rewards without a model; none touches the network."""

import gzip
import json
import math
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from upo.errors import UserError
from upo.rewards import (
    Function,
    Grade,
    LexicalDiversity,
    Mixture,
    Pattern,
    Readability,
    Repetition,
    Script,
    Sentiment,
    ShortSentences,
    Similarity,
    ValidJSON,
    WordListSafety,
    Words,
)

OFFLINE = [
    Grade(),
    Readability(),
    Sentiment(),
    WordListSafety(["moon"]),
    Pattern("x"),
    Words(),
    Grade("flesch_kincaid_grade"),
    Readability("gunning_fog"),
    LexicalDiversity(),
    Repetition(),
    ValidJSON(),
    Script(),
    ShortSentences(),
    Similarity("Say it again, Sam."),
    Mixture({"words": Words(), "mood": Sentiment()}, {"words": 0.1, "mood": -1}),
    Function("math:dist"),
]


def score(reward, *texts):
    return reward(["Say something."] * len(texts), texts)


def lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file.read().split("\n") if line]


def test_readability_is_nine_minus_grade_over_five(monkeypatch):
    import textstat

    grades = {"a": 3.0, "b": 4.0, "c": 6.5, "d": 9.0, "e": 14.0}
    monkeypatch.setattr(textstat, "text_standard", lambda y, float_output: grades[y])
    assert score(Readability(), *grades) == pytest.approx([1, 1, 0.5, 0, 0])
    assert score(Grade(), *grades) == [3, 4, 6.5, 9, 14]


def test_one_formula_instead_of_the_consensus():
    """Flesch and Kincaid's by hand: .39 words a sentence + 11.8 syllables a word - 15.59."""
    text = "The children visited the museum yesterday. They loved beautiful paintings."
    words, sentences, syllables = 10, 2, 20
    grade = 0.39 * words / sentences + 11.8 * syllables / words - 15.59
    hard = "Notwithstanding considerable heterogeneity, epidemiological investigations demonstrate associations."
    assert score(Grade("flesch_kincaid_grade"), text)[0] == pytest.approx(grade, abs=0.01)
    for formula in ("smog_index", "coleman_liau_index", "automated_readability_index", "gunning_fog"):
        values = score(Grade(formula), hard, text, "", "...")
        assert values[0] > 15 > values[1] > 0 and values[2:] == [0, 0], formula
        assert score(Readability(formula), hard, "")[0] == 0
    middle = [min(max((9 - g) / 5, 0), 1) for g in score(Grade("gunning_fog"), text, hard)]
    assert score(Readability("gunning_fog"), text, hard) == pytest.approx(middle)


def test_readability_of_real_sentences():
    easy = "The cat sat on the mat. It was fat."
    hard = (
        "Notwithstanding considerable methodological heterogeneity, the aforementioned epidemiological "
        "investigations demonstrate statistically significant associations between socioeconomic "
        "deprivation and cardiovascular mortality."
    )
    assert score(Grade(), easy)[0] <= 3 and score(Grade(), hard)[0] > 12
    assert score(Readability(), easy, hard) == [1, 0]


def test_text_without_a_word_is_not_readable():
    assert score(Readability(), "", "  ", "...", "123", "_") == [0, 0, 0, 0, 0]
    assert score(Grade(), "", "...", "123") == [0, 0, 0]
    assert score(Readability(), "Да.") != [0]


def test_sentiment():
    good, bad, flat, empty = score(Sentiment(), "A wonderful, happy day!", "A horrible, sad day.", "The table.", "")
    assert good > 0.8 and bad < 0.2 and flat == empty == 0.5
    # VADER, rules by hand: "good" is 1.9 in the lexicon, compound = 1.9 / sqrt(1.9**2 + 15)
    assert score(Sentiment(), "good")[0] == pytest.approx((1 + 1.9 / math.sqrt(1.9**2 + 15)) / 2, abs=1e-4)


def test_pattern_and_words():
    no_quotes = Pattern('["“”]')
    assert score(no_quotes, 'He said "hi".', "He said hi.", "“Hi”", "") == [0, 1, 0, 1]
    assert score(Pattern("(?i)please", wanted=True), "Please go.", "Go.") == [1, 0]
    assert score(Words(), "", "one", " two  words\n") == [0, 1, 2]
    with pytest.raises(UserError, match="no regular expression"):
        Pattern("(")


def test_word_list_safety():
    plain, rude = score(WordListSafety(), "Have a nice walk, my friend.", "You stupid bastard, you suck.")
    assert plain > 0.9 and rude < 0.1
    extra = WordListSafety(["thin ice", "c++"])
    walk, ice, inside, odd = score(extra, "Walk home.", "Walk on THIN ICE.", "within iceland", "Learn c++ now")
    assert ice == odd == 0 and walk > 0.5 and inside > 0.5
    assert score(WordListSafety()) == []


def test_word_list_safety_follows_toxicity_rewards(shared):
    rows = lines(shared / "data/safety/odpo_realtoxicity_reward.jsonl.gz")
    values = score(WordListSafety(), *(row["text"] for row in rows))
    middle = statistics.median(float(row["reward"]) for row in rows)
    high = [v for v, row in zip(values, rows, strict=True) if float(row["reward"]) > middle]
    low = [v for v, row in zip(values, rows, strict=True) if float(row["reward"]) <= middle]
    error = math.sqrt(statistics.variance(high) / len(high) + statistics.variance(low) / len(low))
    assert statistics.mean(high) - statistics.mean(low) > 3 * error


def test_sentiment_follows_review_rewards(shared):
    rows = lines(shared / "data/scored/odpo_imdb_sentiment_reward.jsonl.gz")
    values = score(Sentiment(), *(row["text"] for row in rows))
    assert statistics.correlation(values, [float(row["reward"]) for row in rows]) > 0.4


def test_children_read_easier_texts_than_forum_posts(shared):
    book = (shared / "data/text/childrens_books.txt").read_text(encoding="utf-8")
    with gzip.open(shared / "data/scored/odpo_tldr-sft-test-rel.json.gz", "rt", encoding="utf-8") as file:
        summaries = [row["responses"][0] for row in json.load(file).values()]
    stories = [" ".join(book[i : i + 400].split()[1:-1]) for i in range(20_000, 20_000 + 59 * 4_000, 4_000)]
    assert statistics.mean(score(Readability(), *stories)) > statistics.mean(score(Readability(), *summaries))


@pytest.mark.parametrize("reward", OFFLINE[:-1], ids=lambda r: type(r).__name__)
def test_range_and_fingerprint(reward):
    texts = ["", "!", "Go home.", "You stupid idiot.", "a" * 5000, "日本語", "\n\n", "\x00", "x " * 600, "🙂"]
    values = score(reward, *texts)
    assert len(values) == len(texts)
    assert all(reward.range[0] <= v <= reward.range[1] for v in values)
    assert reward.fingerprint() == reward.fingerprint() and "0x" not in reward.fingerprint()
    assert len({r.fingerprint() for r in OFFLINE}) == len(OFFLINE)


def test_fingerprint_depends_on_arguments():
    assert Pattern("a").fingerprint() != Pattern("a", wanted=True).fingerprint() != Pattern("b").fingerprint()
    assert WordListSafety().fingerprint() != WordListSafety(["moon"]).fingerprint()


def test_no_reward_touches_the_network():
    """In a fresh interpreter, for a download would happen at the first use only."""
    program = """
import socket
def refuse(*args, **kwargs): raise SystemExit("a reward opened a connection")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
from test_rewards import OFFLINE
for reward in OFFLINE[:-1]:
    assert len(reward(["Hi"], ["A wonderful epidemiological table."])) == 1
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    assert socket.socket.connect  # this process keeps its own


def test_listing_and_light_import():
    program = """
import sys
sys.argv = ["upo.rewards"]
import upo.rewards.__main__ as listing
heavy = {"torch", "transformers", "textstat", "sklearn", "vaderSentiment", "rapidfuzz", "scipy"} & set(sys.modules)
assert not heavy, heavy
listing.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in [
        "Function",
        "Readability",
        "SafetyClassifier",
        "WordListSafety",
        "HuggingFaceReward",
        "range [0, 1]",
        "lower is better",
    ]:
        assert name in done.stdout
