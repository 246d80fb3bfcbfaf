"""WPO, Weighted Preference Optimization (Zhou et al., 2024), https://arxiv.org/abs/2406.11827.

Differs from DPO: each pair is weighted by how likely the policy is to write its responses, so that training on
off-policy data resembles training on samples of the policy. Per token, the weight compares the policy's log-prob with
the log-probability that two samples of the policy agree (log sum_v p_v^2, "sampled alignment"); it is averaged over
each response, is at most 1 and has no gradient. Verified in the official code. Deviations: none.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor

from upo.data.batch import Batch
from upo.methods.common.base import Stage
from upo.methods.common.needs import Needs
from upo.methods.dpo import DPO, dpo_loss
from upo.models.logps import ResponseLogps


def wpo_weights(
    chosen_alignment: Float[Tensor, "pairs"], rejected_alignment: Float[Tensor, "pairs"]
) -> Float[Tensor, "pairs"]:
    """min(1, omega(y_w) omega(y_l)), omega(y) = exp(alignment), without gradient.

    One value per pair, in (0, 1].

    Args:
        chosen_alignment: mean over the tokens of log p(y_t) - log sum_v p_v^2, in nats per token; `rejected_alignment`
            likewise.
    """
    return (chosen_alignment + rejected_alignment).detach().clamp(max=0).exp()


def wpo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    weights: Float[Tensor, "pairs"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, "pairs"]:
    """-w log sigmoid(beta (r_w - r_l)), or w times DPO's smoothed loss; one value per pair, unreduced."""
    return weights * dpo_loss(chosen_logratio, rejected_logratio, beta=beta, label_smoothing=label_smoothing)


class WPO(DPO):
    """Weighted Preference Optimization."""

    needs = DPO.needs | Needs(policy={"token_logps", "sum_p2"})
    metric_names: ClassVar = (*DPO.metric_names, "weights")
    initial_loss: ClassVar = None

    def __init__(self, *args: Any, beta: PositiveFloat = 0.01, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (paper: 0.01).
        """
        super().__init__(*args, beta=beta, **kwargs)

    def weights(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        """One weight per pair, in (0, 1]."""
        chosen_alignment, rejected_alignment = (
            x.sums(x.outputs["token_logps"] - x.outputs["sum_p2"].log()) / x.lengths for x in (chosen, rejected)
        )
        return wpo_weights(chosen_alignment, rejected_alignment)

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        with torch.no_grad():
            weights = self.weights(chosen, rejected)
        options = {"beta": self.beta, "label_smoothing": self.label_smoothing}
        return wpo_loss(chosen.logratio, rejected.logratio, weights, **options)

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        super().update_metrics(stage, batch, logps)
        self.means(stage).update(weights=self.weights(logps[0::2], logps[1::2]))
