"""SPPO, hard and soft, and the win rates of its batch."""

import math

import pytest
import torch
from attrs import evolve
from cases import Case
from losses import assert_finite_far_out, assert_gradcheck, draws, gradients, logps_of, made
from tiny import batch_of, unit

from upo.data.example import Example, Response
from upo.methods.sppo import SPPOHard, SPPOSoft, WinRateView, beats, sppo_loss

CASES = {
    SPPOHard: Case(normaliser_cancels=False, defaults={"beta": 1e-3}),
    SPPOSoft: Case(normaliser_cancels=False, defaults={"beta": 1e-3}),
}

W, R = draws(2, 30)
RATES = torch.rand(2, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def hard(w, r, beta=0.01):
    return sppo_loss(w, r, torch.ones_like(w), torch.zeros_like(r), beta=beta)


@pytest.mark.parametrize(("logratios", "golden"), [((2.0, -5.0), 4329.0), ((-3.0, -10.0), 4409.0)])
def test_golden_values(logratios, golden):
    w, r = torch.tensor(logratios, dtype=torch.float64)[:, None]
    assert hard(w, r).item() == pytest.approx(golden)


def test_by_hand():
    """Targets (.8 - .5) 10 = 3 and (.4 - .5) 10 = -1: (5 - 3)^2 + (0 + 1)^2."""
    w, r, p, q = torch.tensor([[5.0], [0.0], [0.8], [0.4]])
    assert sppo_loss(w, r, p, q, beta=0.1).item() == pytest.approx(5)


def test_against_a_slow_reference():
    rows = zip(W.tolist(), R.tolist(), *RATES.tolist(), strict=True)
    expected = [(w - 100 * (p - 0.5)) ** 2 + (r - 100 * (q - 0.5)) ** 2 for w, r, p, q in rows]
    assert sppo_loss(W, R, *RATES, beta=0.01).tolist() == pytest.approx(expected, rel=1e-10)


def test_each_response_has_a_target_of_its_own():
    """At the targets both gradients vanish; a shift of both ratios matters, unlike in DPO."""
    beta, targets = 0.01, (RATES - 0.5) / 0.01
    for gradient in gradients(lambda w, r: sppo_loss(w, r, *RATES, beta=beta), *targets):
        assert gradient.abs().max() < 1e-9
    assert not torch.allclose(hard(W + 7, R + 7), hard(W, R))


def test_the_early_form_of_trl_is_another_one():
    """(beta r_w - 1/2)^2 + (beta r_l + 1/2)^2 has beta^2 of the gradient."""
    early = (0.01 * W - 0.5) ** 2 + (0.01 * R + 0.5) ** 2
    torch.testing.assert_close(hard(W, R) * 0.01**2, early)


def test_gradcheck_signs_and_finite_far_out():
    assert_gradcheck(lambda w, r: sppo_loss(w, r, *RATES[:, :5], beta=0.1), W[:5], R[:5])
    down, up = gradients(hard, torch.zeros(2), torch.zeros(2))
    assert down.tolist() == [-100, -100] and up.tolist() == [100, 100]
    assert_finite_far_out(hard)
    assert_finite_far_out(lambda w, r: hard(w, r, beta=1e-3))


# ---- win rates -----------------------------------------------------------------------------------------------------


def rates(*responses: Response, soft_label: float | None = None) -> dict[str, float]:
    drafts = WinRateView().drafts(Example("p", responses, soft_label=soft_label), 5)
    assert len(drafts) <= 1
    return {r.text: x for d in drafts for r, x in zip(d.example.responses, d.columns["win_rates"], strict=True)}


def test_scores_are_bradley_terry_logits():
    a, b = Response("a", score=2.0), Response("b", score=0.5)
    assert beats(a, b) == pytest.approx(1 / (1 + math.exp(-1.5))) and beats(a, a) == 0.5
    assert beats(Response("a", score=5e3), Response("b", score=-5e3)) == 1


def test_best_and_worst_of_a_list_against_all_of_it():
    found = rates(*(Response(name, score=s) for name, s in (("mid", 1.0), ("worst", 0.0), ("best", 3.0))))
    assert list(found) == ["best", "worst"]

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    assert found["best"] == pytest.approx((0.5 + sigmoid(2) + sigmoid(3)) / 3)
    assert found["worst"] == pytest.approx((0.5 + sigmoid(-1) + sigmoid(-3)) / 3)


def test_ranks_are_certain_wins_and_soft_labels_are_taken_as_they_are():
    best, tied, other = Response("a", rank=0), Response("b", rank=1), Response("c", rank=1)
    assert rates(best, tied, other) == {"a": pytest.approx(2.5 / 3), "b": pytest.approx(1 / 3)}
    assert rates(best, tied, soft_label=0.7) == {"a": pytest.approx(0.7), "b": pytest.approx(0.3)}


def test_equal_responses_and_missing_scores_give_no_pair():
    assert rates(Response("a", score=1.0), Response("b", score=1.0)) == {}
    assert rates(Response("a"), Response("b")) == {}
    assert rates(Response("a", rank=0)) == {}


def test_rates_reach_the_loss():
    work = [unit([3], [4, 5], [6]), unit([7, 8], [9], [10])]
    work = [evolve(u, columns={"win_rates": pq}) for u, pq in zip(work, ((0.9, 0.2), (0.6, 0.5)), strict=True)]
    batch = batch_of(work, WinRateView())
    assert batch["win_rates"].tolist() == pytest.approx([0.9, 0.2, 0.6, 0.5])
    logps = logps_of([-4.0, -6.0, -3.0, -9.0], reference=[-5.0, -5.0, -5.0, -5.0], prompts=[0, 0, 1, 1])
    (soft,) = made(SPPOSoft, beta=0.1).terms(batch, logps, {}).values()
    assert soft.values.tolist() == pytest.approx([(1 - 4) ** 2 + (-1 + 3) ** 2, (2 - 1) ** 2 + (-4 - 0) ** 2], rel=1e-5)
    (certain,) = made(SPPOHard, beta=0.1).terms(batch, logps, {}).values()
    assert certain.values.tolist() == pytest.approx([(1 - 5) ** 2 + (-1 + 5) ** 2, (2 - 5) ** 2 + (-4 + 5) ** 2])
