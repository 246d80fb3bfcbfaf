"""Pairs and triples without a reference: contrasts of log-probs beside the likelihood of a response."""

from collections.abc import Callable

from by_hand.answers import Answer, PlainStep
from by_hand.case import Expected, Reward, case, couples, expected, log_odds, log_sigmoid, of_pairs
from by_hand.pairs import smoothed
from by_hand.units import explained, pairs, triples
from torch import Tensor

from upo.methods import ASFT, CPO, ORPO, RDPO, RORPO, TPO, TPOL, CPOSimPO, GuidedDPO, SimPO, SLiCHF
from upo.methods.common.ranges import FlipRate


def likelihood(won: Answer, per_token: bool) -> Tensor:
    return -won.a if per_token else -won.pi


@case(CPO, pairs, beta=0.3, alpha=0.4, nll_per_token=False)
@case(CPO, pairs, beta=0.2, alpha=0.6, nll_per_token=True)
def cpo(step: PlainStep, beta: float, alpha: float, nll_per_token: bool) -> Expected:
    def loss(won: Answer, lost: Answer) -> dict[str, Tensor]:
        return {"preference": -log_sigmoid(beta * (won.pi - lost.pi)), "nll": likelihood(won, nll_per_token)}

    return of_pairs(step, loss, lambda y: beta * y.pi, scales={"nll": alpha})


@case(CPOSimPO, pairs, beta=1.5, gamma=0.7, alpha=0.2, nll_per_token=False)
@case(CPOSimPO, pairs, beta=2.5, gamma=0.3, alpha=0.4, nll_per_token=True)
def cpo_simpo(step: PlainStep, beta: float, gamma: float, alpha: float, nll_per_token: bool) -> Expected:
    def loss(won: Answer, lost: Answer) -> dict[str, Tensor]:
        return {"preference": -log_sigmoid(beta * (won.a - lost.a) - gamma), "nll": likelihood(won, nll_per_token)}

    return of_pairs(step, loss, lambda y: beta * y.a, scales={"nll": alpha})


@case(SimPO, pairs, beta=1.5, gamma=0.7)
def simpo(step: PlainStep, beta: float, gamma: float) -> Expected:
    return of_pairs(step, lambda won, lost: -log_sigmoid(beta * (won.a - lost.a) - gamma), lambda y: beta * y.a)


@case(SLiCHF, pairs, delta=2.0, lam=0.3, nll_per_token=True)
@case(SLiCHF, pairs, delta=3.0, lam=0.2, nll_per_token=False)
def slic_hf(step: PlainStep, delta: float, lam: float, nll_per_token: bool) -> Expected:
    def loss(won: Answer, lost: Answer) -> dict[str, Tensor]:
        hinge = step.largest(delta - won.pi + lost.pi, 0.0, "the hinge")
        return {"preference": hinge, "nll": likelihood(won, nll_per_token)}

    return of_pairs(step, loss, lambda y: y.pi, scales={"nll": lam})


def orpo_terms(won: Answer, lost: Answer) -> dict[str, Tensor]:
    return {"preference": -log_sigmoid(log_odds(won.a) - log_odds(lost.a)), "nll": -won.a}


@case(ORPO, pairs, lam=0.3)
def orpo(step: PlainStep, lam: float) -> Expected:
    return of_pairs(step, orpo_terms, lambda y: log_odds(y.a), scales={"preference": lam})


@case(ASFT, pairs, lam=0.3, beta=0.8)
def asft(step: PlainStep, lam: float, beta: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> dict[str, Tensor]:
        aligned = -log_sigmoid(beta * log_odds(won.a)) - log_sigmoid(-beta * log_odds(lost.a))
        return {"preference": aligned, "nll": -won.a}

    return of_pairs(step, loss, lambda y: beta * log_odds(y.a), scales={"preference": lam})


# ---- beside a pair: a gold response, a rationale ---------------------------------------------------------------------


def of_triples(step: PlainStep, contrast: Callable[[Answer, Answer], Tensor], reward: Reward, alpha: float) -> Expected:
    """Gold, chosen and rejected: the contrast of the latter, alpha times the gold one's likelihood a token."""
    every = [unit.answers for unit in step.units]
    return expected(
        {"preference": [contrast(won, lost) for _, won, lost in every], "gold": [-gold.a for gold, _, _ in every]},
        reward=reward,
        sides=couples([(won, lost) for _, won, lost in every]),
        scales={"gold": alpha},
        metrics={"logps/gold": [gold.pi for gold, _, _ in every]},
    )


@case(TPO, triples, beta=0.3, alpha=0.6)
def tpo(step: PlainStep, beta: float, alpha: float) -> Expected:
    return of_triples(step, lambda won, lost: -log_sigmoid(beta * (won.pi - lost.pi)), lambda y: beta * y.pi, alpha)


@case(TPOL, triples, beta=1.5, alpha=0.6, gamma=0.7)
def tpol(step: PlainStep, beta: float, alpha: float, gamma: float) -> Expected:
    def contrast(won: Answer, lost: Answer) -> Tensor:
        return -log_sigmoid(beta * (won.a - lost.a) - gamma)

    return of_triples(step, contrast, lambda y: beta * y.a, alpha)


@case(GuidedDPO, triples, beta=0.3, gold_weight=0.4)
def guided_dpo(step: PlainStep, beta: float, gold_weight: float) -> Expected:
    return of_triples(step, lambda won, lost: -log_sigmoid(beta * (won.r - lost.r)), lambda y: beta * y.r, gold_weight)


def rationales(step: PlainStep, gamma: float, log_sigmoid_of_it: bool) -> list[Tensor]:
    """-gamma log p(rationale | x, w > l), or the code's -log sigmoid(gamma log p)."""
    every = [gamma * why.pi for unit in step.units for (why,) in unit.contexts]
    return [-log_sigmoid(x) for x in every] if log_sigmoid_of_it else [-x for x in every]


@case(RDPO, explained, beta=0.3, label_smoothing=FlipRate(0.2), gamma=0.05, log_sigmoid=True)
@case(RDPO, explained, beta=0.4, gamma=0.1, log_sigmoid=False)
def rdpo(step: PlainStep, beta: float, gamma: float, log_sigmoid: bool, label_smoothing: float = 0.0) -> Expected:
    preference = [smoothed(beta * (won.r - lost.r), label_smoothing) for won, lost in step.pairs]
    return expected(
        {"preference": preference, "rationale": rationales(step, gamma, log_sigmoid)},
        reward=lambda y: beta * y.r,
        sides=couples(step.pairs),
    )


@case(RORPO, explained, lam=0.3, gamma=0.05, log_sigmoid=True)
@case(RORPO, explained, lam=0.2, gamma=0.1, log_sigmoid=False)
def rorpo(step: PlainStep, lam: float, gamma: float, log_sigmoid: bool) -> Expected:
    every = [orpo_terms(won, lost) for won, lost in step.pairs]
    terms = {name: [x[name] for x in every] for name in every[0]}
    return expected(
        terms | {"rationale": rationales(step, gamma, log_sigmoid)},
        reward=lambda y: log_odds(y.a),
        sides=couples(step.pairs),
        scales={"preference": lam},
    )
