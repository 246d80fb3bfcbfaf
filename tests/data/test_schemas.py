"""Every source on small hand-written records: the schemas that it reads and the reasons for which it drops."""

import json

import pytest

from upo.data import sources
from upo.data.example import Example
from upo.data.lines import Row
from upo.data.report import DataReport, SourceReport
from upo.data.source import Source, usable_part

DIFFER = "prompts of chosen and rejected differ"
ALTERNATE = "turns of the prompt do not alternate"


def read(name: str, *records: dict, **options) -> tuple[list[Example], SourceReport]:
    report = SourceReport()
    made = getattr(sources, name)((Row(r, f"x:{i + 1}") for i, r in enumerate(records)), report, **options)
    return [e for example in made if (e := usable_part(example, report))], report


def said(*turns: str) -> list[dict[str, str]]:
    """Turns like "u question" as messages."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


def shp_row(post: str, label: int, ratio: float = 3.0, n: int = 0) -> dict:
    votes = {"score_A": 30, "score_B": 10} if label else {"score_A": 10, "score_B": 30}
    return {
        "history": post,
        "human_ref_A": f"A{n}",
        "human_ref_B": f"B{n}",
        "labels": label,
        "score_ratio": ratio,
        **votes,
    }


def test_shp():
    rows = [
        shp_row("p", 1),
        shp_row("p", 0, n=1),
        shp_row("p", 1, ratio=1.9),
        *(shp_row("q", 1, n=i) for i in range(7)),
    ]
    examples, report = read("shp", *rows)
    assert [(r.text, r.score, r.rank) for r in examples[1].responses] == [("B1", 30, 0), ("A1", 10, 1)]
    assert examples[0].prompt == ({"role": "user", "content": "p"},)
    assert report.dropped == {"score ratio below 2": 1, "more than 5 pairs of the post": 2}
    assert report.places["score ratio below 2"] == "x:3"
    assert len(read("shp", *rows, min_score_ratio=1.5, max_pairs=9)[0]) == 10


def message(i: str, parent: str | None, role: str, rank: int | None = None, lang: str = "en") -> dict:
    return {"message_id": i, "parent_id": parent, "text": f"text {i}", "role": role, "rank": rank, "lang": lang}


def nested(rows: list[dict], root: dict) -> dict:
    return {**root, "replies": [nested(rows, r) for r in rows if r["parent_id"] == root["message_id"]]}


def test_oasst_trees_and_flat_messages_give_the_same():
    rows = [
        message("1", None, "prompter"),
        message("2", "1", "assistant", 1),
        message("3", "1", "assistant", 0),
        message("4", "1", "assistant", None),
        message("5", "3", "prompter"),
        message("6", "5", "assistant", 0),
        message("7", "5", "assistant", 1),
        message("8", "2", "prompter"),
        message("9", "8", "assistant", 0),
    ]
    trees, tree_report = read("oasst", {"message_tree_id": "1", "prompt": nested(rows, rows[0])})
    flat, flat_report = read("oasst", *reversed(rows), message("x", "gone", "assistant", 0))

    def content(examples: list[Example]) -> list:
        return [(e.prompt, sorted(e.responses, key=lambda r: r.text)) for e in examples]

    assert content(flat) == content(trees)
    assert [len(e.prompt) for e in trees] == [1, 3]
    first = trees[0]
    assert first.prompt == ({"role": "user", "content": "text 1"},)
    assert [(r.text, r.rank) for r in first.responses] == [("text 2", 1), ("text 3", 0)]
    assert tree_report.altered == flat_report.altered == {"unranked or foreign reply left out": 1}
    assert tree_report.dropped == {"fewer than two ranked replies": 1}
    assert flat_report.dropped == {**tree_report.dropped, "message without its parent": 1}
    assert not read("oasst", *rows, language="de")[0]


def test_ultrafeedback_schemas():
    h4 = {
        "prompt": "p",
        "chosen": said("u p", "a c"),
        "rejected": said("u p", "a r"),
        "score_chosen": 8,
        "score_rejected": 6.5,
    }
    plain = {"prompt": "p", "chosen": "c", "rejected": "r", "metadata": {"score_chosen": 8, "score_rejected": 6.5}}
    examples, report = read(
        "ultrafeedback", h4, plain, {**plain, "metadata": {"score_chosen": 8}}, {**plain, "metadata": None}
    )
    assert examples[0] == examples[1]
    assert [(r.text, r.rank, r.score) for r in examples[0].responses] == [("c", 0, 8.0), ("r", 1, 6.5)]
    assert report.dropped == {"missing `metadata.score_rejected`": 1, "missing `metadata`": 1}

    def completion(text: str, ratings: str, **scores) -> dict:
        names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
        return {
            "response": text,
            "annotations": {n: {"Rating": r} for n, r in zip(names, ratings.split(), strict=True)},
            **scores,
        }

    fine = completion("a", "5 4 3 2", overall_score=10.0, **{"fine-grained_score": 3.5})
    rough = completion("b", "5 N/A 3 2", overall_score=7.0)
    examples, _ = read("ultrafeedback", {"instruction": "p", "completions": [fine, rough]})
    a, b = examples[0].responses
    assert (a.score, b.score) == (3.5, 7.0)
    assert a.attributes == {"helpfulness": 5, "honesty": 4, "instruction_following": 3, "truthfulness": 2}
    assert "honesty" not in b.attributes and len(b.attributes) == 3


USER = ({"role": "user", "content": "p"},)


@pytest.mark.parametrize(
    ("record", "prompt", "texts"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, "The sky is", [" blue.", " green."]),
        ({"chosen": "The sky is blue.", "rejected": "The sky is black."}, "The sky is", [" blue.", " black."]),
        ({"chosen": "It is so", "rejected": "It is so good"}, "It is", [" so", " so good"]),
        ({"prompt": said("u p"), "chosen": said("a c"), "rejected": said("a r")}, USER, ["c", "r"]),
        ({"chosen": said("u p", "a c"), "rejected": said("u p", "a r")}, USER, ["c", "r"]),
        ({"prompt": "p", "chosen": said("u p", "a c"), "rejected": said("u p", "a r")}, USER, ["c", "r"]),
        ({"prompt": "p", "completion": "c", "label": True}, "p", ["c"]),
        ({"prompt": said("u p"), "completion": said("a c"), "label": False}, USER, ["c"]),
        (
            {"chosen": said("s x", "u p", "a c"), "rejected": said("s x", "u p", "a r")},
            (*said("s x"), *USER),
            ["c", "r"],
        ),
    ],
)
def test_trl_formats(record, prompt, texts):
    (example,), _ = read("trl", record)
    assert example.prompt == prompt
    assert [r.text for r in example.responses] == texts
    assert [r.desirable for r in example.responses] == ([record["label"]] if "label" in record else [None, None])


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("trl", {"prompt": "p", "completion": "c", "label": 2}, "`label` is neither true (1) nor false (0)"),
        ("trl", {"prompt": "p", "completion": "c", "label": "good"}, "`label` is neither true (1) nor false (0)"),
        ("trl", {"prompt": "p", "completion": "c", "label": None}, "missing `label`"),
        ("trl", {"completion": "c", "label": True}, "missing `prompt`"),
        ("trl", {"chosen": "x", "rejected": "y"}, "no prompt: the texts do not share one; name its column by options"),
        ("trl", {"chosen": said("u p", "a c"), "rejected": said("u q", "a r")}, DIFFER),
        ("trl", {"prompt": "p", "chosen": said("u p"), "rejected": said("u p")}, "does not end with an assistant turn"),
        ("trl", {"chosen": [{"role": "tool", "content": "c"}], "rejected": []}, "does not end with an assistant turn"),
        ("trl", {"chosen": [{"role": "narrator", "content": "c"}], "rejected": []}, "unknown role `narrator`"),
        ("sharegpt", {"conversations": [], "chosen": {}, "rejected": {}}, "missing `chosen.role`"),
        ("sharegpt", {"messages": said("u p", "a c"), "label": None}, "missing `label`"),
        ("sharegpt", {"messages": said("u p", "u q"), "label": True}, "does not end with an assistant turn"),
        ("sharegpt", {"messages": said("u p", "u q", "a c"), "label": True}, ALTERNATE),
        ("hh", {"chosen": "\n\nHuman: p\n\nAssistant: c"}, "missing `rejected`"),
        ("hh", {"chosen": "no turns", "rejected": "no turns"}, "prompt does not end with a user turn"),
        ("llmbar", {"input": "p", "output_1": "a", "output_2": "b", "label": 0}, "`label` is neither 1 nor 2"),
        ("gsm8k_solutions", {"question": "q", "6b_finetuning": "text"}, "`6b_finetuning` is str, not object"),
        ("odpo_tldr", {"post": {"responses": ["a"], "rewards": [1, 2]}}, "responses and rewards differ in number"),
        (
            "tot_game24",
            {"steps": [{"new_ys": ["a"], "values": [], "select_new_ys": []}]},
            "thoughts and values differ in number",
        ),
        (
            "qa_feedback",
            {f"prediction {i}": "a" for i in range(1, 5)} | {"preference": [0, 1]},
            "`preference` is not six",
        ),
        ("mlmb", {"question": "q", "response": "You: a", "morality_label": "ugly"}, "`morality_label` is neither"),
    ],
)
def test_unusable_records_are_dropped_with_a_reason(name, record, reason):
    examples, report = read(name, record)
    assert not examples
    assert [(r.startswith(reason), n) for r, n in report.dropped.items()] == [(True, 1)], report.dropped


def test_sharegpt_schemas():
    openai = {"messages": said("s x", "u p", "a q", "u r"), "chosen": said("a c")[0], "rejected": said("a d")[0]}
    sharegpt = {
        "system": "x",
        "conversations": [
            {"from": "human", "value": "p"},
            {"from": "gpt", "value": "q"},
            {"from": "human", "value": "r"},
        ],
        "chosen": {"from": "gpt", "value": "c"},
        "rejected": {"from": "gpt", "value": "d"},
    }
    kto = {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "c"}], "kto_tag": False}
    examples, _ = read("sharegpt", openai, sharegpt, kto)
    assert examples[0] == examples[1]
    assert [m["role"] for m in examples[0].prompt] == ["system", "user", "assistant", "user"]
    assert (examples[2].prompt, examples[2].responses[0].desirable) == (USER, False)


def test_llmbar_label_says_the_better_one():
    row = {"input": "p", "output_1": "a", "output_2": "b"}
    examples, _ = read("llmbar", {**row, "label": 1}, {**row, "label": 2})
    assert [[(r.text, r.rank) for r in e.responses] for e in examples] == [[("a", 0), ("b", 1)], [("b", 0), ("a", 1)]]


def test_rewardbench_counts_by_section(tmp_path):
    file = tmp_path / "rb.jsonl"
    rows = [{"prompt": "p", "chosen": "c", "rejected": "r", "subset": s} for s in ("hep-go", "donotanswer", "new")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = Source("rewardbench", path=str(file)).examples(DataReport())
    assert [e.source for e in examples] == ["rewardbench/reasoning", "rewardbench/safety", "rewardbench/new"]
    assert [r.text for r in examples[0].responses] == ["c", "r"] and examples[0].prompt == USER


def test_gsm8k_right_solutions_are_desirable():
    solvers = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    row = {solver: {"solution": solver, "is_correct": solver.startswith("175b")} for solver in solvers}
    (example,), _ = read("gsm8k_solutions", {"question": "q", **row})
    assert {r.text: r.desirable for r in example.responses} == {s: s.startswith("175b") for s in solvers}


def test_odpo_tldr_prompt():
    (example,), _ = read("odpo_tldr", {"A post.": {"responses": [" short", " long"], "rewards": [7, 3]}})
    assert example.prompt == "A post.\n\nTL;DR:"
    assert [(r.text, r.score) for r in example.responses] == [(" short", 7), (" long", 3)]


def test_mlmb_dialogue():
    row = {"question": "q", "response": "You: a Friend: b\nYou: c", "morality_label": "bad"}
    (example,), _ = read("mlmb", row)
    assert [(m["role"][0], m["content"]) for m in example.prompt] == [("u", "q"), ("a", "a"), ("u", "b")]
    assert [(r.text, r.desirable) for r in example.responses] == [("c", False)]


def test_qa_feedback_circle_has_no_ranks():
    base = {f"prediction {i}": str(i) for i in range(1, 5)} | {"question": "q", "passages": [["T", "a.", "b."]]}
    # pairs in the order 12 13 14 23 24 34
    order, circle = read(
        "qa_feedback", base | {"preference": [1, 1, 1, 0, 2, 2]}, base | {"preference": [1, 2, 1, 1, 1, 1]}
    )[0]
    assert [(r.rank, r.score) for r in order.responses] == [(0, 3), (2, 0.5), (2, 0.5), (1, 2)]
    assert [(r.rank, r.score) for r in circle.responses] == [(None, 2), (None, 2), (None, 2), (None, 0)]
    assert order.prompt[0]["content"] == "T\na. b.\n\nq"


def test_a_bad_record_costs_its_list_one_response():
    rows = [{"prompt": "p", "text": text, "reward": reward} for text, reward in (("a", 1), (True, 2), ("c", 3))]
    examples, report = read("odpo", *rows)
    assert [(r.text, r.score) for r in examples[0].responses] == [(" a", 1), (" c", 3)]
    assert report.altered == {"`text` is bool, not text: response left out": 1}
