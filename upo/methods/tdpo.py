"""TDPO, Token-level DPO (Zeng et al., 2024), https://arxiv.org/abs/2404.11999.

Differs from DPO: the margin includes KL(reference || policy) of every next-token distribution, summed over the
response, so that the policy stays near the reference token by token. `TDPO2` multiplies these sums by alpha and stops
the gradient through the chosen response's sum, so that the chosen response may move away from the reference. The
reference must be a model. Verified in the official code. Deviations: none; TDPO2's implicit reward multiplies the
divergence by alpha, as its loss does.
"""

from typing import Any, ClassVar

from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.data.batch import Batch
from upo.methods.common.base import Stage
from upo.methods.common.families import PairwiseMethod
from upo.methods.common.needs import SUMS, Needs
from upo.models.logps import ResponseLogps


def tdpo1_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    chosen_kl: Float[Tensor, "pairs"],
    rejected_kl: Float[Tensor, "pairs"],
    *,
    beta: float,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(beta (u - delta)), u = r_w - r_l, delta = K(y_l) - K(y_w); one value per pair, unreduced.

    Args:
        chosen_kl: K(y_w), K(y) = sum_t KL(reference(.|x, y_<t) || policy(.|x, y_<t)), in nats; `rejected_kl` is K(y_l).
    """
    return -logsigmoid(beta * (chosen_logratio - rejected_logratio - (rejected_kl - chosen_kl)))


def tdpo2_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    chosen_kl: Float[Tensor, "pairs"],
    rejected_kl: Float[Tensor, "pairs"],
    *,
    beta: float,
    alpha: float,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(beta (u - alpha delta)), delta = K(y_l) - sg[K(y_w)]; one value per pair, unreduced."""
    return -logsigmoid(beta * (chosen_logratio - rejected_logratio - alpha * (rejected_kl - chosen_kl.detach())))


class TDPO1(PairwiseMethod):
    """Token-level DPO with the divergence as derived: weight 1, and gradients through both responses' sums."""

    reward_is_log_odds = True
    needs = Needs(policy={"kl"}, reference=SUMS, reward={"kl"})
    metric_names: ClassVar = (*PairwiseMethod.metric_names, "kl/chosen", "kl/rejected")
    initial_loss = 0.693147

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (paper: 0.1).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        chosen_kl, rejected_kl = (x.sums(x.outputs["kl"]) for x in (chosen, rejected))
        return tdpo1_loss(chosen.logratio, rejected.logratio, chosen_kl, rejected_kl, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * (logps.logratio + logps.sums(logps.outputs["kl"]))

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        super().update_metrics(stage, batch, logps)
        kl = logps.sums(logps.outputs["kl"])
        self.means(stage).update(**{"kl/chosen": kl[0::2], "kl/rejected": kl[1::2]})


class TDPO2(TDPO1):
    """Token-level DPO with a weighted divergence and no gradient through the chosen one, as the paper recommends."""

    def __init__(self, *args: Any, alpha: NonNegativeFloat = 0.5, **kwargs: Any):
        """
        Args:
            alpha: weight of the divergences, no unit; 0 is DPO (paper: 0.5).
        """
        super().__init__(*args, **kwargs)
        self.alpha = alpha

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        chosen_kl, rejected_kl = (x.sums(x.outputs["kl"]) for x in (chosen, rejected))
        return tdpo2_loss(chosen.logratio, rejected.logratio, chosen_kl, rejected_kl, beta=self.beta, alpha=self.alpha)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * (logps.logratio + self.alpha * logps.sums(logps.outputs["kl"]))
