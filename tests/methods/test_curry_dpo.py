"""Curry-DPO: the pairs of a ranked list, their stages, and the reference of each stage."""

import json

import pytest
import torch
from cases import Case
from losses import FIRST, golden_pair, made
from tiny import examples_of, unit
from training import fit, make, resumed_equals_uninterrupted

from upo.callbacks.staged_reference import StagedReference
from upo.data.curriculum import CurriculumSampler, stages_of
from upo.data.example import Example, Response
from upo.data.rounds import Split
from upo.data.units import Unit
from upo.errors import UserError
from upo.methods import DPO
from upo.methods.curry_dpo import CurryDPO, TopPairedView

CASES = {CurryDPO: Case(normaliser_cancels=True, defaults={"beta": 0.1})}


def ranked(prompt: str, *scores: float) -> Example:
    return Example(prompt, tuple(Response(f"{s}", score=s) for s in scores))


def pairs(*examples: Example) -> list[Unit]:
    views = [v for e in examples for v in examples_of(TopPairedView(), e, 9)]
    return [Unit.of([1], ([5], [6]), v) for v in views]


def test_the_best_against_each_other_easy_ones_first():
    views = examples_of(TopPairedView(), ranked("x", 2.0, 5.0, 1.0, 4.0), 9)
    assert [[r.text for r in v.responses] for v in views] == [["5.0", "1.0"], ["5.0", "2.0"], ["5.0", "4.0"]]
    assert [[r.text for r in v.responses] for v in examples_of(TopPairedView(), ranked("x", 2.0, 5.0, 1.0), 1)] == [
        ["5.0", "1.0"]
    ]
    assert examples_of(TopPairedView(), ranked("x", 3.0, 3.0), 9) == [] == examples_of(TopPairedView(), ranked("x"), 9)


def test_stages_by_gap_within_a_prompt():
    units = pairs(ranked("a", 4.0, 3.0, 2.0, 1.0), ranked("b", 9.0, 0.0), ranked("c", 5.0, 1.0, 1.0, 4.0))
    assert stages_of(units) == [0, 1, 2, 0, 0, 0, 1]
    assert stages_of(units + units) == stages_of(units) * 2, "an example that is used twice has no more stages"
    with pytest.raises(UserError, match="ranked pairs"):
        stages_of([unit([1], [2])])


def sampler(units: list[Unit], epoch: int = 0, **options) -> CurriculumSampler:
    given = {"units_per_step": 2, "tokens_per_microbatch": 100, "shuffle": True, "seed": 0} | options
    return CurriculumSampler([u.cost for u in units], split=Split(tuple(units)), start=lambda: (epoch, 0), **given)


def test_stages_follow_one_another_and_no_step_mixes_them():
    units = pairs(*(ranked(str(i), 4.0, 3.0, 2.0, 1.0) for i in range(5)))
    stage, ours = stages_of(units), sampler(units)
    plans = list(ours)
    assert len(plans) == len(ours) == 9 and ours.stage_starts == [0, 3, 6]
    assert [{stage[u] for u in p.units} for p in plans] == [{0}] * 3 + [{1}] * 3 + [{2}] * 3
    assert sorted(u for p in plans for u in p.units) == list(range(15))
    assert [p.units for p in sampler(units, epoch=1)] != [p.units for p in plans], "shuffled within a stage"
    ours.start = lambda: (0, 4)
    assert [p.units for p in ours] == [p.units for p in plans[4:]]
    assert [p.units for p in sampler(units, rank=1, world_size=2)] == [p.units for p in plans]


def test_one_pair_a_prompt_is_dpo():
    assert len(sampler(pairs(*(ranked(str(i), 2.0, 1.0) for i in range(5)))).stages) == 1
    assert made(CurryDPO).loss(*golden_pair(FIRST)).item() == made(DPO).loss(*golden_pair(FIRST)).item()
    assert made(CurryDPO).loss(*golden_pair(FIRST)).item() == pytest.approx(0.403186, abs=5e-7)


def lists(rows, report):
    for row in rows:
        yield Example(row.text("p"), tuple(Response(t, score=float(s)) for s, t in enumerate(row.data["r"])))


@pytest.fixture
def three_stages(tmp_path):
    """Four prompts of four responses: twelve pairs, three stages of two steps."""
    file = tmp_path / "lists.jsonl"
    rows = [{"p": f"Name {i}:", "r": ["no", "well", "yes it is", "it is so, sure"]} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"pairs": str(file), "source": "test_curry_dpo.lists", "sampler": CurriculumSampler}


def test_each_stage_starts_from_its_own_reference(three_stages, tmp_path):
    watch = fit(make(CurryDPO), tmp_path, StagedReference(), **three_stages).watch
    for step in range(6):
        assert torch.equal(watch.references[step], watch.policies[step // 2 * 2]), step
    assert [round(watch.losses[s], 5) for s in (0, 2, 4)] == [0.69315] * 3
    plain = fit(make(CurryDPO), tmp_path, **three_stages).watch
    assert torch.equal(plain.references[5], plain.references[0])


def test_killed_and_resumed_equals_uninterrupted(three_stages, tmp_path):
    resumed_equals_uninterrupted(CurryDPO, StagedReference, tmp_path, **three_stages)


def test_without_a_curriculum_there_are_no_stages(tmp_path):
    with pytest.raises(UserError, match="CurriculumSampler"):
        fit(make(DPO), tmp_path, StagedReference())
    with pytest.raises(UserError, match="ranked pairs"):
        stages_of([Unit.of([1], ([2], [3]), Example("x", (Response("a"), Response("b"))))])
