"""What the listwise family hands to a loss, and its metrics."""

import pytest
from attrs import evolve
from losses import logps_of, made
from tiny import batch_of, units

from upo.data.example import Response
from upo.data.views import ListwiseView
from upo.methods.common.families import ListwiseMethod


class Plain(ListwiseMethod):
    """Keeps what it got."""

    def loss(self, responses, scores, mask):
        self.seen = responses, scores, mask
        return responses.logratio.masked_fill(~mask, 0).sum(1)

    def reward(self, logps):
        return logps.logratio


LOGPS = logps_of([1.0, 2.0, 3.0, 4.0, 5.0], reference=[0.5] * 5, lengths=[1, 2, 3, 4, 5], prompts=[0, 0, 1, 1, 1])
SCORES = ((0.0, 9.0), (2.0, 2.0, 1.0))
WORK = [
    evolve(u, example=u.example.with_responses(tuple(Response("r", score=s) for s in scores)))
    for u, scores in zip(units([(3, [1, 2]), (2, [3, 4, 5])]), SCORES, strict=True)
]
BATCH = batch_of(WORK, ListwiseView())


def test_a_loss_sees_rectangles():
    method = made(Plain)
    (term,) = method.terms(BATCH, LOGPS, {}).values()
    responses, scores, mask = method.seen
    assert mask.tolist() == [[True, True, False], [True] * 3]
    assert responses.logps.tolist() == [[1, 2, 1], [3, 4, 5]] and responses.lengths.tolist() == [[1, 2, 1], [3, 4, 5]]
    assert responses.mean.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert scores.tolist() == [[0, 9, 0], [2, 2, 1]]
    assert term.values.tolist() == [2.0, 10.5] and term.mean_over == "prompts"


def test_best_and_worst_and_all_couples():
    """Couples: 2 over 1 (right), 3 over 5 and 4 over 5 (both wrong); 3 and 4 tie in score and are both best."""
    method = made(Plain)
    method.update_metrics("val", BATCH, LOGPS)
    values = {name: float(x) for name, x in method.compute_metrics("val").items()}
    assert values == pytest.approx(
        {
            "rewards/chosen": (1.5 + 2.5 + 3.5) / 3,
            "rewards/rejected": (0.5 + 4.5) / 2,
            "rewards/accuracies": 1 / 3,
            "rewards/margins": (1 - 2 - 1) / 3,
            "rewards/ties": 0.0,
            "logps/chosen": 3.0,
            "logps/rejected": 3.0,
        }
    )
