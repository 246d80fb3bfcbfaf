"""Every source on real data with its real defects; test_schemas.py has small hand-written records."""

from collections import Counter

import pytest

from upo.data.example import Example
from upo.data.lines import local_rows
from upo.data.report import DataReport, SourceReport
from upo.data.source import Source

DIFFER = "prompts of chosen and rejected differ"
ALTERNATE = "turns of the prompt do not alternate"

# source, file or folder (and pattern), examples kept, responses in them, dropped, altered.
# Counted beforehand from the raw JSON by other means.
REAL = [
    ("hh", "hh/harmless-base.test.jsonl.gz", 1346, 2692, {DIFFER: 5, "empty chosen": 2, ALTERNATE: 2}, {}),
    (
        "hh",
        "hh/helpful-base.test.jsonl.gz",
        1380,
        2760,
        {DIFFER: 4, ALTERNATE: 3, "identical pair": 2, "empty rejected": 2, "empty turn in the prompt": 1},
        {},
    ),
    (
        "hh",
        "hh/helpful-online.test.jsonl.gz",
        694,
        1388,
        {"empty rejected": 2, "identical pair": 1, "ends with a Human turn": 1},
        {},
    ),
    ("hh", "hh/helpful-rejection-sampled.test.jsonl.gz", 1630, 3260, {"identical pair": 17, DIFFER: 2}, {}),
    ("sharegpt", "pairs/llamafactory_dpo_en_demo.jsonl.gz", 175, 350, {}, {}),
    ("sharegpt", "unpaired/llamafactory_kto_en_demo.jsonl", 191, 191, {}, {}),
    ("llmbar", "pairs/llmbar.jsonl", 254, 508, {}, {}),
    ("llmbar", "pairs/llmbar_mtbench_human.jsonl", 123, 246, {}, {}),
    (
        "pandalm",
        "pairs/pandalm_testset_v1.jsonl.gz",
        479,
        958,
        {
            "tie": 91,
            "empty rejected": 43,
            "`response1` is bool, not text": 4,
            "`response2` is bool, not text": 2,
            "empty chosen": 1,
        },
        {},
    ),
    ("gsm8k_solutions", "unpaired/gsm8k_example_model_solutions.jsonl.gz", 764, 3049, {}, {"repeated": 7}),
    (
        "ultrafeedback",
        "scored/ultrafeedback_binarized_train_clean.jsonl.gz",
        525,
        1050,
        {"tie": 67, "identical pair": 3},
        {},
    ),
    ("ultrafeedback", "scored/ultrafeedback_binarized_eval_clean.jsonl.gz", 101, 202, {"tie": 17}, {}),
    ("hanna", "scored/hanna.jsonl.gz", 54, 594, {}, {}),
    ("topical_chat", "scored/unieval_topical_chat.jsonl.gz", 32, 192, {}, {}),
    ("qa_feedback", "scored/qa_feedback_dev.jsonl.gz", 301, 1204, {}, {}),
    # 71 lists of 3, 36 of 2, 21 of 4, 6 of 6, 2 of 5, 1 of 9
    ("oasst", "scored/oasst_en_100_tree.jsonl.gz", 137, 424, {"fewer than two ranked replies": 20}, {}),
    ("odpo", "scored/odpo_imdb_sentiment_reward.jsonl.gz", 135, 1370, {}, {"empty": 10}),
    ("odpo", "safety/odpo_realtoxicity_reward.jsonl.gz", 154, 770, {}, {}),
    ("odpo_tldr", "scored/odpo_tldr-sft-train-rel.json.gz", 344, 2455, {}, {"repeated": 19}),
    ("odpo_tldr", "scored/odpo_tldr-sft-test-rel.json.gz", 59, 447, {}, {"repeated": 72}),
    (
        "prmbench",
        "steps/prmbench_*.jsonl.gz",
        1314,
        2628,
        {"questions of the two solutions differ": 40, "an error step lies outside the solution": 17},
        {},
    ),
    ("tot_game24", "steps/tot_game24_gpt4_bfs.jsonl.gz", 248, 5305, {}, {"repeated": 14}),
    ("tot_game24_chain", "steps/tot_game24_gpt4_bfs.jsonl.gz", 155, 964, {"no right answer found": 22}, {}),
    (
        "mlmb",
        "safety/mlmb_hh_bad_only.jsonl.gz",
        1752,
        1752,
        {ALTERNATE: 3, "prompt does not end with a user turn": 1, "text before the first turn": 1},
        {},
    ),
]


def real(shared, name: str, place: str) -> tuple[list[Example], SourceReport]:
    report = DataReport()
    folder, _, file = place.rpartition("/")
    where = {"path": str(shared / "data" / folder), "files": file}
    return Source(name, **where).examples(report), report.of(name)


@pytest.mark.turns(3)
@pytest.mark.parametrize(
    ("name", "place", "kept", "responses", "dropped", "altered"),
    [pytest.param(*row, id="-".join(row[:2])) for row in REAL],
)
def test_real_set(shared, name, place, kept, responses, dropped, altered):
    examples, report = real(shared, name, place)
    assert report.dropped == dropped
    assert report.altered == {f"{what} response left out": n for what, n in altered.items()}
    assert len(examples) == report.kept["examples"] == kept
    assert sum(len(e.responses) for e in examples) == responses
    for example in examples:
        assert example.source == name
        roles = [] if isinstance(example.prompt, str) else [m["role"] for m in example.prompt]
        if roles:
            assert roles[-1] == "user" and all(m["content"].strip() for m in example.prompt)
        for r in example.responses:
            assert r.text.strip()
            assert (r.rank, r.desirable, r.score) != (None, None, None)


def test_hh_is_all_there(shared):
    """Put together again, every kept dialogue is the original one, but for white space around turns."""
    examples, _ = real(shared, "hh", "hh/helpful-base.test.jsonl.gz")
    said = {"user": "\n\nHuman:", "assistant": "\n\nAssistant:"}

    def squeeze(text: str) -> str:
        return "".join(text.split())

    import gzip
    import json

    with gzip.open(shared / "data/hh/helpful-base.test.jsonl.gz", "rt", encoding="utf-8", newline="\n") as lines:
        originals = {tuple(squeeze(json.loads(line)[k]) for k in ("chosen", "rejected")) for line in lines}
    for example in examples:
        prompt = "".join(said[m["role"]] + m["content"] for m in example.prompt) + said["assistant"]
        assert tuple(squeeze(prompt + r.text) for r in example.responses) in originals
        assert [r.rank for r in example.responses] == [0, 1]
    assert max(len(e.prompt) for e in examples) > 9


def test_pandalm_votes(shared):
    examples, _ = real(shared, "pandalm", "pairs/pandalm_testset_v1.jsonl.gz")
    labels = Counter(round(6 * e.soft_label) for e in examples)  # type: ignore[operator]
    assert labels == {6: 429, 5: 17, 4: 33}  # 3:0, 2:0 with a tie, 2:1


def test_labels(shared):
    kto, _ = real(shared, "sharegpt", "unpaired/llamafactory_kto_en_demo.jsonl")
    assert Counter(e.responses[0].desirable for e in kto) == {True: 96, False: 95}
    assert max(len(e.prompt) for e in kto) == 11
    gsm8k, _ = real(shared, "gsm8k_solutions", "unpaired/gsm8k_example_model_solutions.jsonl.gz")
    assert Counter(len(e.responses) for e in gsm8k)[4] == 764 - 7
    bad, _ = real(shared, "mlmb", "safety/mlmb_hh_bad_only.jsonl.gz")
    assert {e.responses[0].desirable for e in bad} == {False}
    assert not any(f"{who}:" in e.responses[0].text for e in bad for who in ("You", "Friend"))


def test_lists(shared):
    qa, _ = real(shared, "qa_feedback", "scored/qa_feedback_dev.jsonl.gz")
    assert sum(e.responses[0].rank is not None for e in qa) == 291
    assert all(sum(r.score for r in e.responses) == 6 for e in qa)  # each of six comparisons gives one point
    hanna, _ = real(shared, "hanna", "scored/hanna.jsonl.gz")
    story = hanna[0].responses[0]
    assert story.attributes["relevance"] == pytest.approx(10 / 3) and len(story.attributes) == 6
    assert story.score == pytest.approx((10 / 3 + 3 + 3 + 2 + 3 + 8 / 3) / 6)
    topical, _ = real(shared, "topical_chat", "scored/unieval_topical_chat.jsonl.gz")
    assert topical[0].responses[0].score == pytest.approx(14 / 3)
    tot, _ = real(shared, "tot_game24", "steps/tot_game24_gpt4_bfs.jsonl.gz")
    kept = [sum(r.desirable for r in e.responses) for e in tot]
    assert max(kept) == 5 and min(kept) > 0
    assert len({e.prompt[0]["content"] for e in tot}) == 62


def test_odpo_continues_its_prompt(shared):
    imdb, _ = real(shared, "odpo", "scored/odpo_imdb_sentiment_reward.jsonl.gz")
    assert imdb[0].prompt + imdb[0].responses[0].text[:9] == "I found it real shocking for the "
    starts = Counter(r.text[0] for e in imdb for r in e.responses)
    assert starts[" "] > 1200 and starts[","] == 50 and starts["."] == 15


def test_thoughts_on_the_way_are_set_against_their_siblings(shared):
    examples, _ = real(shared, "tot_game24_chain", "steps/tot_game24_gpt4_bfs.jsonl.gz")
    first = examples[0].responses
    assert {r.text for r in first if r.rank == 0} == {"4 * 5 = 20 (left: 6 10 20)"}, "both right answers begin so"
    for example in examples:
        lines = [r.text.split("\n") for r in example.responses]
        assert len({tuple(x[:-1]) for x in lines}) == 1 and len({x[-1] for x in lines}) == len(lines)
        assert {r.rank for r in example.responses} == {0, 1}
        assert all(r.complete == ("Answer" in r.text) and -1 <= r.score <= 1 for r in example.responses)


def test_prmbench_marks_wrong_steps(shared):
    examples, _ = real(shared, "prmbench", "steps/prmbench_prm800k_test_p2_4o_step_contradiction.jsonl.gz")
    chosen, rejected = examples[0].responses
    assert set(chosen.attributes.values()) == {1.0}
    assert [name for name, right in rejected.attributes.items() if not right] == ["step_12", "step_13"]
    assert len(rejected.attributes) == len(rejected.text.split("\n")) == 16


# PandaLM's mixed column and ODPO's one object with a key a post are no Arrow tables: these two exist as files alone
@pytest.mark.turns(3)
@pytest.mark.parametrize(
    ("name", "place"),
    [pytest.param(*r[:2], id="-".join(r[:2])) for r in REAL if r[0] not in ("pandalm", "odpo_tldr")],
)
def test_hub_gives_the_same_as_the_file(shared, monkeypatch, name, place):
    """`datasets` reads the records into Arrow and back: absent keys become None, whole numbers may become floats."""
    import datasets

    folder, _, pattern = place.rpartition("/")
    records = [row.data for row in local_rows(shared / "data" / folder, pattern)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(records))
    report = DataReport()
    from_hub = Source(name, path="owner/name").examples(report)
    local, local_report = real(shared, name, place)
    assert from_hub == local
    assert (report.of(name).dropped, report.of(name).altered) == (local_report.dropped, local_report.altered)
