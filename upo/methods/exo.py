"""EXO, Efficient Exact Optimization (Ji et al., 2024), https://arxiv.org/abs/2402.00856.

Minimises the REVERSE KL between two distributions over K responses: from the one that the policy implies to the one
that the rewards imply. DPO and its listwise form (InfoNCA, see nca.py) minimise the forward KL. For pairs the target is
the smoothed label [1 - eps, eps]. Not convex: the gradient vanishes for pairs that are wrong with confidence.
Verified in the official code. Deviation: the factor 1/0.8 on the log-ratios and the target of eps = exp(-10), which
that code has and the paper has not, are left out.
"""

import math
from typing import Any

from jaxtyping import Bool, Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.functional.lists import masked_log_softmax, masked_softmax
from upo.methods.common.families import ListwiseMethod, PairwiseMethod
from upo.methods.common.ranges import Smoothing
from upo.models.logps import ResponseLogps


def exo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    *,
    beta: float,
    eps: float,
) -> Float[Tensor, "pairs"]:
    """EXO-pref: KL([sigmoid(z), sigmoid(-z)] || [1 - eps, eps]), z = beta (r_w - r_l).

    One value per pair, in nats, unreduced.
    """
    z = beta * (chosen_logratio - rejected_logratio)
    return z.sigmoid() * (logsigmoid(z) - math.log1p(-eps)) + (-z).sigmoid() * (logsigmoid(-z) - math.log(eps))


def exo_listwise_loss(
    rewards: Float[Tensor, "B K"],
    scores: Float[Tensor, "B K"],
    mask: Bool[Tensor, "B K"],
    *,
    temperature: float,
) -> Float[Tensor, "B"]:
    """EXO-rw: KL(softmax(rewards) || softmax(scores / temperature)) over each list; one value per prompt, unreduced."""
    gap = masked_log_softmax(rewards, mask) - masked_log_softmax(scores / temperature, mask)
    return (masked_softmax(rewards, mask) * gap).sum(1)


class EXO(PairwiseMethod):
    """Efficient Exact Optimization on pairs."""

    def __init__(self, *args: Any, beta: PositiveFloat = 0.5, eps: Smoothing = 1e-3, **kwargs: Any):
        """
        Args:
            beta: beta_pi, scale of the implicit reward, in 1/nats (official code: 0.5 for HH, 0.1 for IMDB).
            eps: probability that a label is flipped, in (0, 0.5) (recommended: 0.001).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.eps = beta, eps

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return exo_loss(chosen.logratio, rejected.logratio, beta=self.beta, eps=self.eps)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio


class EXOListwise(ListwiseMethod):
    """Efficient Exact Optimization on scored lists."""

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, temperature: PositiveFloat = 0.1, **kwargs: Any):
        """
        Args:
            beta: beta_pi, scale of the implicit reward, in 1/nats (official code: 0.1 for IMDB).
            temperature: beta_r, by which the scores are divided, in their unit (official code: 0.1 for IMDB).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.temperature = beta, temperature

    def loss(self, responses: ResponseLogps, scores: Tensor, mask: Tensor) -> Tensor:
        return exo_listwise_loss(self.reward(responses), scores, mask, temperature=self.temperature)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
