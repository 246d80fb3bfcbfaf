"""The pass without gradient: every value where its unit stands, whatever the cut, the layout and the ranks are."""

import fake_ranks
import pytest
import torch
from attrs import evolve
from tiny import groups_of, plain_logps, policy, units

import upo.models.scoring
from upo.data.layout import collate_responses
from upo.models.policy import Policy
from upo.models.reference import FrozenReference
from upo.models.scoring import score, score_in_parts
from upo.runtime.collectives import Ranks

WORK = groups_of(units([(3, [9, 2]), (5, [1]), (1, [4, 14, 7, 1, 2]), (20, [2, 3]), (1, [1]), (7, [1, 1, 6])]))
WANTED = ("token_logps", "entropy", "prompt_hidden", "hidden")
BUDGETS = [("packed", 10_000), ("packed", 40), ("packed", 1), ("padded", 60)]


def one_by_one(model: Policy) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        parts = [model(collate_responses([group], "packed", row_tokens=64, pad_id=0), WANTED) for group in WORK]
    return {name: torch.cat([part[name] for part in parts]) for name in ("logps", *WANTED)}


@pytest.mark.parametrize(("layout", "max_tokens"), BUDGETS)
def test_every_value_stands_where_its_unit_does(layout, max_tokens):
    model = policy()
    state = torch.get_rng_state()
    got = score(model, WORK, WANTED, layout=layout, max_tokens=max_tokens, device="cpu")
    assert torch.equal(state, torch.get_rng_state()) and not any(x.requires_grad for x in got.values())
    for name, expected in one_by_one(model).items():
        torch.testing.assert_close(got[name], expected, atol=2e-5, rtol=2e-5)
    plain = torch.cat([plain_logps(model, u.prompt, r) for u in WORK for r in u.responses])
    torch.testing.assert_close(got["token_logps"], plain.detach(), atol=1e-4, rtol=1e-4)


def test_the_budget_cuts_the_work():
    def passes(**options) -> list:
        return list(score_in_parts(policy(), WORK, device="cpu", **options))

    assert len(passes(layout="packed", max_tokens=10_000)) == 1
    assert len(passes(layout="packed", max_tokens=1)) == len(WORK)
    parts = passes(layout="packed", max_tokens=40)
    assert 1 < len(parts) < len(WORK)
    assert sorted(i for part in parts for i in part.groups) == list(range(len(WORK)))
    for part in parts:
        assert len(part.groups) == 1 or sum(WORK[i].cost for i in part.groups) <= 40
    wide = passes(layout="padded", max_tokens=100)
    assert all(len(p.groups) == 1 or sum(WORK[i].padded_cost for i in p.groups) <= 100 for p in wide)


def test_values_come_pass_by_pass_and_processes_may_lay_units_out():
    model, options = policy(), {"layout": "packed", "max_tokens": 40, "device": "cpu"}
    parts = [list(score_in_parts(model, WORK, workers=n, bucket_by_length=True, **options)) for n in (0, 1)]
    for a, b in zip(*parts, strict=True):
        assert a.groups == b.groups and a.counts and torch.equal(a.values["logps"], b.values["logps"])


@pytest.mark.parametrize("max_tokens", [40, 10_000])
def test_ranks_share_the_work_and_know_the_whole(max_tokens, monkeypatch):
    """Those with too little work run a pass that does not count."""
    model, options = policy(), {"layout": "packed", "max_tokens": max_tokens, "device": "cpu"}
    whole = score(model, WORK, WANTED, **options)
    both = fake_ranks.on_ranks(lambda rank: score(model, WORK, WANTED, ranks=Ranks(rank, 2), **options), 2, monkeypatch)
    for name, x in whole.items():
        for of_rank in both:
            torch.testing.assert_close(of_rank[name], x, atol=2e-5, rtol=2e-5)
    shares = [list(score_in_parts(model, WORK[:3], ranks=Ranks(rank, 2), **options)) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1])
    assert sorted(i for share in shares for p in share if p.counts for i in p.groups) == [0, 1, 2]


def test_whoever_is_alone_waits_for_nobody(monkeypatch):
    """Rank 0 evaluates while the others of its process group have gone on."""
    monkeypatch.setattr(upo.models.scoring, "sum_over_ranks", None)
    assert len(score(policy(), WORK, layout="packed", max_tokens=40, device="cpu")["logps"]) == 14


@pytest.mark.parametrize(("layout", "max_tokens"), BUDGETS)
def test_against_another_model_that_reads_its_own_units(layout, max_tokens):
    """As a reference behind another control token does."""
    ours, theirs = policy(seed=1), policy(seed=2)
    behind = [evolve(unit, prompt=[*unit.prompt, 9]) for unit in WORK]
    options = {"layout": layout, "max_tokens": max_tokens, "device": "cpu"}
    got = score(ours, WORK, ("reverse_kl", "entropy"), against=(theirs, behind), **options)
    for name, model, read in (("logps", ours, WORK), ("reference_logps", theirs, behind)):
        expected = torch.stack([plain_logps(model, u.prompt, r).sum().detach() for u in read for r in u.responses])
        torch.testing.assert_close(got[name], expected, atol=1e-4, rtol=1e-4)
    kl = []
    for unit, other in zip(WORK, behind, strict=True):
        for response in unit.responses:
            p, q = (
                model.model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].log_softmax(-1)
                for model, prompt in ((ours, unit.prompt), (theirs, other.prompt))
            )
            p, q = p[len(unit.prompt) - 1 : -1], q[len(other.prompt) - 1 : -1]
            kl.append((p.exp() * (p - q)).sum(-1).detach())
    torch.testing.assert_close(got["reverse_kl"], torch.cat(kl), atol=1e-4, rtol=1e-3)


def test_references_and_functions_are_scorers_too():
    reference = FrozenReference()
    reference.build(policy())
    options = {"layout": "packed", "max_tokens": 40, "device": "cpu"}
    got = score(reference.score, WORK, ("prompt_hidden",), **options)
    torch.testing.assert_close(got["prompt_hidden"], one_by_one(policy())["prompt_hidden"], atol=2e-5, rtol=2e-5)
    lengths = score(lambda responses, _: {"reward": responses.lengths.float()}, WORK, ("reward",), **options)
    assert lengths["reward"].tolist() == [len(r) for u in WORK for r in u.responses]
