"""Views of examples, and what lies where in the two layouts."""

import pickle

import pytest
import torch
from attrs import evolve
from tiny import arrange, batch_of, examples_of, groups_of, unit, units

from upo.data.batch import Batch, Step
from upo.data.example import Example, Response
from upo.data.layout import collate_responses
from upo.data.views import DemonstrationView, ListwiseView, PairedView, UnpairedView, View
from upo.errors import UserError

SHAPES = [(3, [9, 2]), (5, [1]), (1, [4, 4, 7, 1, 2]), (70, [2, 3]), (1, [1])]
"""Among them a unit longer than a row, a prompt of one token, responses of one token."""


def rebuild(responses) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of every row, read back from masks and positions alone."""
    ids, prompt, of = (
        x.flatten().tolist()
        for x in (responses.input_ids, responses.prompt_segment_ids, responses.response_segment_ids)
    )
    found = []
    for n, b in enumerate(responses.prompt_index.tolist()):
        tokens = responses.targets[responses.response_index == n].tolist()
        body = [i for i, r in zip(ids, of, strict=True) if r == n]
        assert body == tokens[:-1], "the input of a response is all but its last token"
        own_rows = {i // responses.input_ids.shape[1] for i, r in enumerate(of) if r == n}
        text = [i for i, (p, r) in enumerate(zip(prompt, of, strict=True)) if p == b and r == -1]
        if responses.layout == "padded":
            width = responses.input_ids.shape[1]
            text = [i for i in text if i // width == n]
            assert own_rows <= {n}
        found.append(([ids[i] for i in text], tokens))
    return found


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_response_is_there_with_its_prompt_in_order(layout):
    work = units(SHAPES)
    responses = arrange(work, layout)
    assert rebuild(responses) == [(u.prompt, r) for u in work for r in u.responses]
    assert responses.lengths.tolist() == [len(r) for u in work for r in u.responses]
    assert responses.prompt_index.tolist() == [b for b, u in enumerate(work) for _ in u.responses]
    ids = responses.input_ids.flatten()
    assert ids[responses.prompt_end].tolist() == [u.prompt[-1] for u in work]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_each_token_is_predicted_from_the_one_before_it(layout):
    work = units(SHAPES)
    responses = arrange(work, layout)
    before = [t for u in work for r in u.responses for t in [u.prompt[-1], *r[:-1]]]
    assert responses.input_ids.flatten()[responses.logit_positions].tolist() == before
    places = [p for u in work for r in u.responses for p in range(len(u.prompt) - 1, len(u.prompt) + len(r) - 1)]
    assert responses.position_ids.flatten()[responses.logit_positions].tolist() == places


def test_packed_holds_each_prompt_once_and_pads_little():
    work = units([(20, [5, 5])] * 9)
    packed = arrange(work)
    assert (packed.prompt_segment_ids >= 0).sum() == sum(u.cost for u in work) == 9 * 28
    assert packed.input_ids.shape == (5, 56), "two of 28 tokens in a row of at most 64, cut to what is used"
    assert arrange(work, "padded").input_ids.shape == (18, 24)


def test_who_sees_whom():
    responses = arrange([unit([3, 4], [5, 6, 7], [8, 9]), unit([10], [11, 12])])
    assert responses.input_ids.tolist() == [[3, 4, 5, 6, 8, 10, 11]]
    assert responses.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert responses.attention_mask[0, 0].int().tolist() == expected
    assert responses.logit_positions.tolist() == [1, 2, 3, 1, 4, 5, 6]


def test_no_row_of_the_mask_is_empty():
    responses = arrange(units(SHAPES))
    assert (responses.prompt_segment_ids == -1).any(), "there is padding"
    assert responses.attention_mask.any(-1).all()
    padding, real = (
        responses.prompt_segment_ids[:, None, :, None] == -1,
        responses.prompt_segment_ids[:, None, None, :] != -1,
    )
    assert not (responses.attention_mask & padding & real).any()


def test_a_column_that_is_not_there_is_said():
    """E.g. advantages, where a method is validated that has not begun to train."""
    with pytest.raises(UserError, match=r"no column `advantage` \(they have preferred\)"):
        batch_of([unit([3], [4, 5], [6])], PairedView())["advantage"]


def test_rewards_stand_beside_their_responses():
    made = [unit([3], [4, 5], [6]), unit([7], [8])]
    values = iter([0.1, 0.2, 0.3])
    for i, u in enumerate(made):
        rated = tuple(evolve(r, rewards={"a": next(values), "b": -1.0}) for r in u.example.responses)
        made[i] = evolve(u, example=u.example.with_responses(rated))
    for layout in ("packed", "padded"):
        got = batch_of(made, View(), layout=layout, rewards=["b", "a"]).responses.rewards
        torch.testing.assert_close(got, torch.tensor([[-1.0, 0.1], [-1.0, 0.2], [-1.0, 0.3]]))


def test_padding_with_any_id_changes_nothing_but_the_padding():
    work = units(SHAPES)
    a, b = (collate_responses(groups_of(work), "packed", row_tokens=64, pad_id=i) for i in (0, 2))
    real = a.prompt_segment_ids >= 0
    assert torch.equal(a.prompt_segment_ids, b.prompt_segment_ids) and torch.equal(a.input_ids[real], b.input_ids[real])
    assert (b.input_ids[~real] == 2).all() and torch.equal(a.targets, b.targets)


def test_batches_keep_their_dtypes_move_and_pickle():
    """float64 and int64 stay what they are, wherever a batch goes."""
    responses = evolve(arrange(units(SHAPES)), reference_logps=torch.randn(11, dtype=torch.float64))
    batch = Batch(responses, {"preferred": torch.rand(11) > 0.5}, None, arrange(units(SHAPES, seed=1)))
    step = Step((batch, evolve(batch, dummy=True)), {"prompts": 5, "responses": 11, "tokens": 35})
    for moved in (step.to("cpu"), pickle.loads(pickle.dumps(step))):
        assert [b.dummy for b in moved.micro_batches] == [False, True]
        assert moved.counts == step.counts
        got = moved.micro_batches[0]
        assert got.responses.reference_logps.dtype == torch.float64
        assert torch.equal(got.responses.reference_logps, responses.reference_logps)
        assert torch.equal(got.mismatched.targets, batch.mismatched.targets) and got.responses.layout == "packed"
    meta = step.to("meta").micro_batches[1]
    assert (
        meta.responses.input_ids.device.type
        == meta.mismatched.response_index.device.type
        == meta["preferred"].device.type
        == "meta"
    )


def test_counts():
    assert batch_of(units([(3, [4, 2]), (2, [1, 1])]), PairedView()).counts == {
        "prompts": 2,
        "responses": 4,
        "tokens": 8,
    }


# ---- views ---------------------------------------------------------------------------------------------------------


def example(*responses: Response) -> Example:
    return Example("p", responses)


RANKED = example(Response("b", rank=1), Response("a", rank=0), Response("c", rank=2), Response("d", rank=2))
SCORED = example(Response("x", score=1.0), Response("y", score=5.0), Response("z", score=2.0), Response("?"))
LABELLED = example(Response("g", desirable=True), Response("b", desirable=False), Response("h", desirable=True))
BOTH = example(Response("g", desirable=True, score=0.2), Response("b", desirable=False, score=0.9))


def texts(views: list[Example]) -> list[str]:
    return ["".join(r.text for r in v.responses) for v in views]


def test_pairs_are_of_different_preference_chosen_first_widest_gap_first():
    assert texts(examples_of(PairedView(), RANKED, 9)) == ["ac", "ad", "bc", "bd", "ab"]
    assert texts(examples_of(PairedView(), RANKED, 2)) == ["ac", "ad"]
    assert texts(examples_of(PairedView(), SCORED, 9)) == ["yx", "yz", "zx"]
    assert texts(examples_of(PairedView(), LABELLED, 9)) == ["gb", "hb"]
    assert examples_of(PairedView(), example(Response("a", rank=0), Response("b", rank=0)), 9) == []
    assert examples_of(PairedView(), example(Response("a"), Response("b")), 9) == []


def test_labels_are_kept_or_made_of_pairs():
    assert examples_of(UnpairedView(), LABELLED, 9) == [LABELLED]
    views = examples_of(UnpairedView(), SCORED, 2)
    assert texts(views) == ["yx", "yz"]
    assert all([r.desirable for r in v.responses] == [True, False] for v in views)


def test_lists_are_of_two_or_more_known_responses():
    assert texts(examples_of(ListwiseView(), SCORED, 9)) == ["xyz"]
    assert examples_of(ListwiseView(), example(Response("a", score=1.0), Response("b")), 9) == []
    batch = batch_of([unit([3], [4], [5], score=2.5), unit([6], [7], [8], rank=1)], ListwiseView())
    assert batch["scores"].tolist() == [2.5, 2.5, -1.0, -1.0]
    both = batch_of([unit([3], [4], [5], rank=1, score=2.5)], ListwiseView())
    assert both["scores"].tolist() == [2.5, 2.5], "scores say how much better"


def test_demonstrations_are_what_is_worth_imitating():
    assert texts(examples_of(DemonstrationView(), RANKED, 9)) == ["a"]
    assert texts(examples_of(DemonstrationView(), LABELLED, 9)) == ["g", "h"]
    assert texts(examples_of(DemonstrationView(), BOTH, 9)) == ["g"], "a label says more than a score"
    assert texts(examples_of(DemonstrationView(), SCORED, 9)) == ["y"], "never the worse ones"
    assert texts(examples_of(DemonstrationView(), example(Response("a"), Response("b")), 9)) == ["a", "b"]
    assert examples_of(DemonstrationView(), example(Response("a", desirable=False)), 9) == []


def test_preferred_rows():
    assert batch_of(units([(3, [4, 2]), (2, [1, 1])]), PairedView()).preferred.tolist() == [
        True,
        False,
        True,
        False,
    ]
    work = [unit([3], [4], desirable=True), unit([5], [6], [7], desirable=False)]
    assert batch_of(work, UnpairedView()).preferred.tolist() == [True, False, False]


def test_contradictions():
    same, other = unit([3], [4, 5], [4, 5]), unit([3], [4, 5], [4, 6])
    assert PairedView().contradicts(same) and not PairedView().contradicts(other)
    labels = tuple(evolve(r, desirable=d) for r, d in zip(same.example.responses, (True, False), strict=True))
    assert UnpairedView().contradicts(evolve(same, example=same.example.with_responses(labels)))
    alike = tuple(evolve(r, desirable=True) for r in same.example.responses)
    assert not UnpairedView().contradicts(evolve(same, example=same.example.with_responses(alike)))
    assert not UnpairedView().contradicts(evolve(other, example=other.example.with_responses(labels)))
