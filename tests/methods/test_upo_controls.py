"""UPO's controls: each takes one thing away and nothing else."""

from itertools import pairwise

import torch
from attrs import evolve
from test_upo import CASE
from test_upo_options import method, value_terms, weights_of

from upo.methods.upo_controls import AuxiliaryOnly, UPOShuffled

CASES = {
    UPOShuffled: evolve(
        CASE,
        metrics={*CASE.metrics, "kl"},
        step_metrics={"loss/auxiliary"},  # a permutation of each step's responses
        normaliser_cancels=False,
    ),
    AuxiliaryOnly: evolve(CASE, metrics={*CASE.metrics} - {"loss/preference"}, falls="loss/auxiliary"),
}


def shuffled_at(seed: int, number: int, monkeypatch) -> torch.Tensor:
    monkeypatch.setattr(UPOShuffled, "global_step", number)
    return weights_of(method(UPOShuffled, shuffle_seed=seed))[0]


def test_shuffled_weights_are_upos_in_another_order(monkeypatch):
    used, plain = weights_of(method(UPOShuffled))
    torch.testing.assert_close(used.sort().values, plain.sort().values)
    assert not torch.allclose(used, plain)
    draws = [shuffled_at(*at, monkeypatch) for at in ((0, 0), (0, 1), (0, 2), (1, 0))]
    torch.testing.assert_close(draws[0], used)
    assert not any(torch.allclose(a, b) for a, b in pairwise([*draws, draws[0]]))
    assert torch.equal(shuffled_at(0, 1, monkeypatch), draws[1])


def test_shuffling_changes_nothing_but_the_auxiliary_term():
    (terms, logps), (plain, _) = value_terms(method(UPOShuffled)), value_terms(method())
    for name in ("preference", "value"):
        torch.testing.assert_close(terms[name].values, plain[name].values)
    assert not torch.allclose(terms["auxiliary"].values, plain["auxiliary"].values)
    # with lambda 0 there is nothing to shuffle
    torch.testing.assert_close(value_terms(method(UPOShuffled, lam=0.0))[0]["auxiliary"].values, -logps.mean)


def test_over_many_steps_shuffled_weights_say_nothing_of_a_response(monkeypatch):
    """Each response's mean weight tends to the mean of all: their spread falls as with independent draws."""
    made, total = method(UPOShuffled), torch.zeros(10)
    every = torch.arange(10).double()
    for number in range(500):
        monkeypatch.setattr(UPOShuffled, "global_step", number)
        total += made.couple(every).float()
    assert (total / 500 - 4.5).abs().max() < 4 * every.std().item() / 500**0.5


def test_the_auxiliary_term_alone_is_upos_without_its_preference():
    (terms, logps), (plain, _) = value_terms(method(AuxiliaryOnly)), value_terms(method())
    assert set(terms) == {"auxiliary", "value"}
    for name, term in terms.items():
        torch.testing.assert_close(term.values, plain[name].values)
        assert (term.mean_over, term.weight) == (plain[name].mean_over, plain[name].weight)
    torch.testing.assert_close(method(AuxiliaryOnly).reward(logps), logps.logratio)
