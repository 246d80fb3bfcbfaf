"""Preferences replaced by rewards: which way they turn, what is dropped and counted, and what batches make of them."""

import json

import pytest
import tiny
from tiny import examples_of

from upo.data.example import Example, Response
from upo.data.module import PreferenceData
from upo.data.relabel import relabel
from upo.data.report import DataReport
from upo.data.source import Source
from upo.data.views import DemonstrationView, ListwiseView, PairedView, UnpairedView
from upo.errors import UserError
from upo.rewards.length import Words

WEIGHTS = {"taste": 1.0, "safety": 0.5}


def response(text: str, taste: float, safety: float, **fields) -> Response:
    return Response(text, rewards={"taste": taste, "safety": safety}, **fields)


def pair(better: tuple[float, float], worse: tuple[float, float], **fields) -> Example:
    chosen, rejected = response("chosen", *better, rank=0), response("rejected", *worse, rank=1)
    return Example("p", (chosen, rejected), source="made", **fields)


def once(*examples: Example) -> tuple[list[Example], DataReport]:
    report = DataReport()
    return relabel(examples, [], WEIGHTS, report)[0], report


def order(example: Example) -> list[str]:
    (view,) = examples_of(PairedView(), example, 5)
    return [r.text for r in view.responses]


def test_the_weighted_sum_decides():
    """taste + safety / 2: .4 + .5 beats .8, .4 + .3 does not."""
    kept, report = once(pair((0.4, 1.0), (0.8, 0.0)), pair((0.4, 0.6), (0.8, 0.0)))
    assert [order(e) for e in kept] == [["chosen", "rejected"], ["rejected", "chosen"]]
    assert [r.score for r in kept[1].responses] == pytest.approx([0.7, 0.8])
    assert report.to_dict()["made"]["altered"] == {"preference turned by relabelling": 1}


def test_ties_are_dropped_and_counted():
    kept, report = once(pair((0.5, 0.0), (0.0, 1.0)), pair((1.0, 0.0), (0.0, 0.0)))
    assert len(kept) == 1 and report.to_dict()["made"]["dropped"] == {"tie after relabelling": 1}


def test_what_is_known_of_the_old_preference_goes():
    (example,), _ = once(pair((0.0, 0.0), (1.0, 1.0), soft_label=0.9, rationale="because", user="u"))
    assert example.soft_label is None and example.rationale is None and example.user == "u"
    assert all(r.rank is None and r.desirable is None for r in example.responses)


def test_labels_of_pairs_follow():
    (example,), _ = once(pair((0.0, 0.0), (1.0, 1.0)))
    (view,) = examples_of(UnpairedView(), example, 5)
    assert [(r.text, r.desirable) for r in view.responses] == [("rejected", True), ("chosen", False)]
    (best,) = examples_of(DemonstrationView(), example, 5)
    assert [r.text for r in best.responses] == ["rejected"]


def test_records_without_any_preference_work_and_lists_keep_their_scores():
    bare = Example("p", tuple(response(t, x, 0.0) for t, x in (("a", 0.2), ("b", 0.9), ("c", 0.2))), source="made")
    (example,), report = once(bare)
    assert [[r.text for r in v.responses] for v in examples_of(PairedView(), example, 5)] == [["b", "a"], ["b", "c"]]
    (ranked,) = examples_of(ListwiseView(), example, 5)
    assert [r.score for r in ranked.responses] == [0.2, 0.9, 0.2]
    assert report.to_dict()["made"]["altered"] == {"tie after relabelling within a list, pair left out": 1}


def test_single_responses_are_compared_with_the_median_of_the_training_data():
    def single(taste: float, good: bool | None) -> Example:
        return Example("p", (response("x", taste, 0.0, desirable=good),), source="made")

    train = [single(0.1, False), single(0.2, True), single(0.4, True), single(0.5, None), single(0.3, True)]
    report = DataReport()
    kept, held_out = relabel(train, [single(0.9, False), single(0.35, True)], WEIGHTS, report)
    assert [e.responses[0].desirable for e in kept] == [False, False, True, True]
    assert [e.responses[0].desirable for e in held_out] == [True, True], "not with their own median, .625"
    counts = report.to_dict()["made"]
    assert counts["dropped"] == {"tie after relabelling": 1}
    assert counts["altered"] == {"preference turned by relabelling": 2}
    assert all(examples_of(UnpairedView(), e, 5) for e in kept)


# ---- through the data module ---------------------------------------------------------------------------------------


class Few(Words):
    """Few words are good."""

    def __call__(self, prompts, responses):
        return [-x for x in super().__call__(prompts, responses)]

    def fingerprint(self) -> str:
        return "few " + super().fingerprint()


def module(folder, relabel: dict[str, float] | None, **options) -> PreferenceData:
    file, head = folder / "pairs.jsonl", "\n\nHuman: {}\n\nAssistant: {}"
    rows = [{"chosen": head.format(p, c), "rejected": head.format(p, r)} for p, c, r in tiny.PAIRS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PreferenceData(
        (Source("hh", path=str(file)),), rewards={"few": Few(), "length": Words()},
        rewards_cache=str(folder / "cache"), relabel=relabel, max_length=200, **options,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [PairedView(), UnpairedView()])
def test_the_data_module_relabels_both_splits_and_keeps_the_held_out_originals(kind, tmp_path):
    data = module(tmp_path, {"few": 1.0}, validation=3)
    data.prepare(tiny.tokenizer(), kind, ("length",))
    words = [(len(c.split()), len(r.split())) for _, c, r in tiny.PAIRS]
    ties, turned = sum(a == b for a, b in words), sum(a > b for a, b in words)
    assert ties > 0 and turned > 0
    for unit in (*data.train.units, *data.val.units):
        better, worse = (len(r.text.split()) for r in unit.example.responses)
        assert better < worse
        assert unit.example.responses[0].rewards["length"] == better, "the method's own rewards are still there"
    assert len(data.train) + len(data.val) == len(words) - ties
    report = data.report.to_dict()["hh"]
    assert report["dropped"]["tie after relabelling"] == ties
    assert report["altered"]["preference turned by relabelling"] == turned
    assert all(e.responses[0].rank == 0 for e in data.held_out), "evaluation sees the users' preference"
    rewards = data.train.batch([0]).responses.rewards
    assert rewards.shape == (2, 1), "columns of the method alone"


def test_without_relabel_nothing_changes(tmp_path):
    data = module(tmp_path, None, validation=0)
    data.prepare(tiny.tokenizer(), PairedView())
    assert [u.example.responses[0].text for u in data.train.units] == [c for _, c, _ in tiny.PAIRS]


def test_an_unknown_reward_is_refused(tmp_path):
    data = module(tmp_path, {"kindness": 1.0})
    with pytest.raises(UserError, match=r"data\.relabel.*kindness.*few"):
        data.prepare(tiny.tokenizer(), PairedView())


def test_all_ties_say_so(tmp_path):
    data = module(tmp_path, {"few": 0.0}, validation=0)
    with pytest.raises(UserError, match="tie after relabelling"):
        data.prepare(tiny.tokenizer(), PairedView())


def test_twice_is_once():
    (a,), _ = once(pair((0.4, 1.0), (0.8, 0.0)))
    again, _ = once(a)
    assert again == [a]
