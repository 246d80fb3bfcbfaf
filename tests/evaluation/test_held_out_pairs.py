"""Held-out pairs: accuracies, margins, calibration, sources, lengths, and what the reference allows."""

import pytest
import torch
from cases import case_of
from losses import made

import upo.methods
from upo.data.example import Example, Response
from upo.data.units import Unit
from upo.evaluation.held_out_pairs import idealised_figures, pair_figures, pair_values
from upo.methods.common.families import PairwiseMethod
from upo.metrics.calibration import calibration_error
from upo.models.logps import ResponseLogps

LENGTHS = ((10, 10), (11, 10), (20, 10), (5, 9))
MARGINS = (2.0, -1.0, 0.5, 0.0)
"""Of the policy's log-ratio."""


def scaled(known: ResponseLogps) -> torch.Tensor:
    """A reward of twice the log-ratio."""
    return 2 * known.logratio


def pairs(sources: str = "aabb", labels: tuple[float | None, ...] = (None,) * 4) -> list[Unit]:
    return [
        Unit.of([1], ([2] * w, [3] * k), Example(f"p{i}", (Response("w"), Response("l")), labels[i], source=sources[i]))
        for i, (w, k) in enumerate(LENGTHS)
    ]


def logps(reference: bool = True) -> ResponseLogps:
    ours = torch.tensor([x for m in MARGINS for x in (-40.0 + m, -40.0)])
    theirs = torch.full((8,), -40.0)
    lengths = torch.tensor([x for pair in LENGTHS for x in pair])
    return ResponseLogps(ours, lengths, torch.arange(8) // 2, theirs if reference else None)


def test_by_hand() -> None:
    values = pair_values(logps(), scaled(logps()))
    assert values["rewards/margins"] == [4.0, -2.0, 1.0, 0.0]
    assert values["rewards/accuracies"] == values["ranking/accuracies"] == [1.0, 0.0, 1.0, 0.5]
    assert values["ranking/accuracies_mean"] == [1.0, 1.0, 1.0, 0.0], "by log-probs a token, longer is better here"
    figures = pair_figures(values, pairs(), log_odds=True)
    assert figures["val/rewards/margins"] == 0.75 and figures["val/rewards/accuracies"] == 0.625
    assert figures["val/rewards/accuracies/a"] == 0.5 and figures["val/rewards/accuracies/b"] == 0.75
    assert figures["val/rewards/accuracies_length_matched"] == 0.5, "11 against 10 tokens is alike, 5 against 9 is not"
    assert figures["val/rewards/accuracies_length_matched_n"] == 2
    assert figures["val/rewards/calibration_error"] == calibration_error([4.0, -2.0, 1.0, 0.0])
    assert figures["val/rewards/margins_low"] < 0.75 < figures["val/rewards/margins_high"]


def test_only_log_odds_are_calibrated() -> None:
    values = pair_values(logps(), scaled(logps()))
    plain, claimed = (pair_figures(values, pairs(), log_odds) for log_odds in (False, True))
    assert claimed.keys() - plain.keys() == {"val/rewards/calibration_error"}


PAIRWISE = [k for name in upo.methods.__all__ if issubclass(k := getattr(upo.methods, name), PairwiseMethod)]


def test_log_odds_are_claimed_where_the_loss_is_their_likelihood() -> None:
    """-log sigmoid(reward difference), for random log-probs; methods whose loss asks for more are left out."""
    generator, checked = torch.Generator().manual_seed(0), set()
    x = ResponseLogps(
        -30 * torch.rand(20, generator=generator).double() - 5,
        torch.randint(5, 40, (20,), generator=generator),
        torch.arange(20) // 2,
        -30 * torch.rand(20, generator=generator).double() - 5,
    )
    for kind, options in ((k, case_of(k).log_odds_at) for k in PAIRWISE):
        if options is None:
            continue
        try:
            method = made(kind, **options)
            loss, reward = method.loss(x[0::2], x[1::2]), method.reward(x)
        except Exception:
            continue
        checked.add(kind.__name__)
        expected = torch.nn.functional.softplus(reward[1::2] - reward[0::2])
        fits = loss.shape == expected.shape and torch.allclose(loss.double(), expected.double(), atol=1e-6)
        assert fits == kind.reward_is_log_odds, kind.__name__
    assert checked >= {"DPO", "CPO", "DPOGamma", "FDPO", "LNDPO", "LNDPOP", "ORPO", "SimPO", "IPO", "DPOP"}


def test_one_source_is_not_repeated() -> None:
    assert not [
        n for n in pair_figures(pair_values(logps(), scaled(logps())), pairs("aaaa"), True) if "accuracies/" in n
    ]


def test_without_reward_or_reference() -> None:
    assert pair_values(logps(), None)["rewards/margins"] == list(MARGINS), "the log-ratio stands in"
    values = pair_values(logps(reference=False), None)
    assert values.keys() == {"ranking/accuracies", "ranking/accuracies_mean"}
    assert {n.split("_")[0] for n in pair_figures(values, pairs(), False)} == {"val/ranking/accuracies"}
    assert idealised_figures(logps(reference=False), pairs(), 0.1) == {}


def test_idealised_accuracy_of_a_reference() -> None:
    # log ref(w) - log ref(l) of -8, -8, 1, 3; sure raters pull by 6.907 / beta: 690, 69, 6.9, 1.4, 0.7
    theirs = torch.tensor([-48.0, -40.0, -48.0, -40.0, -39.0, -40.0, -37.0, -40.0])
    given = ResponseLogps(theirs, logps().lengths, torch.arange(8) // 2, theirs)
    figures = idealised_figures(given, pairs(), 2.0)
    assert figures["val/ranking/idealised"] == 0.5
    ends = [figures[f"val/ranking/idealised_{end}"] for end in ("min", "median", "max")]
    assert ends == [0.5, 0.5, 1.0]
    assert figures["val/ranking/idealised_mean"] == 1.0, "-8 nats over ten tokens are less than raters pull"
    # raters of 60 % pull by log(1.5) / beta = 0.405 / beta only: 40, 4, 0.4, ...; a tie is left out
    soft = pairs(labels=(0.6, 0.4, 0.5, None))
    figures = idealised_figures(given, soft, None)
    ends = [figures[f"val/ranking/idealised_{end}"] for end in ("min", "median", "max")]
    assert ends == pytest.approx([1 / 3, 1 / 3, 1.0]) and "val/ranking/idealised" not in figures
