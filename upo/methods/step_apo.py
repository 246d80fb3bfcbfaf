"""Step-APO, step-level Advantage Preference Optimization (Wang et al., 2024), https://arxiv.org/abs/2409.08642.

Step-DPO whose margin must exceed the difference of the two steps' advantages, as estimated by a tree search. The paper
writes it with values of the next states; the value of the state before the steps is the same for both and cancels, so
Q may be used instead. Verified in the official code and configurations; the derivation only in a summary of the paper.

Deviations: pairs are not filtered; the authors keep those whose best Q among siblings is above 0 and whose worst is
below, and scale the Q of solution-type steps by 0.3.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.data.batch import Batch
from upo.data.example import Example
from upo.data.units import Draft
from upo.methods.common.base import LossTerm
from upo.methods.step_dpo import StepDPO, StepPairedView
from upo.models.logps import ResponseLogps


def step_apo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    q_gap: Float[Tensor, "pairs"],
    *,
    beta: float,
    alpha: float = 1.0,
    label_smoothing: float = 0.0,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(z), z = beta (r_w - r_l) - alpha (Q_w - Q_l); alpha is not multiplied by beta.

    Smoothed as DPO's loss: -(1 - eps) log sigmoid(z) - eps log sigmoid(-z). One value per pair, unreduced.

    Args:
        q_gap: Q_w - Q_l; a larger gap requires a larger margin.
    """
    z = beta * (chosen_logratio - rejected_logratio) - alpha * q_gap.detach()
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


class ValuedStepView(StepPairedView):
    """Pairs of steps with the column `q`: the Q of each step, which is its response's score."""

    wants = "pair of scored solutions that part at the first wrong step"

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        scored = tuple(r for r in example.responses if r.score is not None)
        return super().drafts(example.with_responses(scored), max_pairs)

    def columns(self, example: Example) -> Mapping[str, Sequence[float]]:
        return {**super().columns(example), "q": [float(r.score) for r in example.responses]}  # type: ignore[arg-type]


class StepAPO(StepDPO):
    """Step-DPO with an advantage offset."""

    reward_is_log_odds = False
    view = ValuedStepView()
    initial_loss = None

    def __init__(self, *args: Any, beta: PositiveFloat = 0.3, alpha: NonNegativeFloat = 1.0, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (official code: 0.3).
            alpha: weight of the difference of Q, where Q lies in [-1, 1]; 0 is Step-DPO (official code: 1).
        """
        super().__init__(*args, beta=beta, **kwargs)
        self.alpha = alpha

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        chosen, rejected = logps[0::2].logratio, logps[1::2].logratio
        q_gap = batch["q"][0::2] - batch["q"][1::2]
        options = {"beta": self.beta, "alpha": self.alpha, "label_smoothing": self.label_smoothing}
        values = step_apo_loss(chosen, rejected, q_gap, **options)
        return {"preference": LossTerm(values, "prompts")}
