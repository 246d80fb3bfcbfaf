"""GDPO, GIPO, GROPO: geometric-averaged preference optimization (Furuta et al., 2024), https://arxiv.org/abs/2409.06691.

For pairs with a soft label p, the probability that the first response is preferred. In any loss the likelihood of the
chosen response is replaced by the geometric mean policy(y_w)^p policy(y_l)^(1-p), that of the rejected one by the
reverse, and the reference's likewise: the margin D = r_w - r_l becomes (2p - 1) D. Even pairs (p = 1/2) have no
gradient; certain ones (p = 1) have that of the base loss: DPO, IPO or ROPO (https://arxiv.org/abs/2404.04102).

Partly verified: GDPO's gradient. GIPO and GROPO follow from the substitution; ROPO's alpha = 14 is from knowledge.
Deviations: none known. Cross-entropy to soft labels, which some code calls GDPO, is `SoftCDPO` in `soft_labels.py`.
"""

from typing import Any

import torch
from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.methods.soft_labels import SoftLabelMethod
from upo.models.logps import ResponseLogps


def averaged_margin(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    soft_labels: Float[Tensor, "pairs"],
) -> Float[Tensor, "pairs"]:
    """(2p - 1) (r_w - r_l): the margin between the two geometric means."""
    return (2 * soft_labels - 1) * (chosen_logratio - rejected_logratio)


def gdpo_loss(margin: Float[Tensor, "pairs"], *, beta: float) -> Float[Tensor, "pairs"]:
    """-log sigmoid(beta m), m the averaged margin; one value per pair, unreduced."""
    return -logsigmoid(beta * margin)


def gipo_loss(margin: Float[Tensor, "pairs"], *, tau: float) -> Float[Tensor, "pairs"]:
    """(m - 1 / (2 tau))^2, m the averaged margin; one value per pair, unreduced, in squared nats."""
    return (margin - 1 / (2 * tau)) ** 2


def gropo_loss(margin: Float[Tensor, "pairs"], *, beta: float, alpha: float) -> Float[Tensor, "pairs"]:
    """4 a / (1 + a)^2 (-log sigmoid(beta m)) + 4 a^2 / (1 + a)^2 sigmoid(-beta m), m the averaged margin, a = alpha.

    One value per pair, unreduced.
    """
    z = beta * margin
    return 4 * alpha / (1 + alpha) ** 2 * (alpha * torch.sigmoid(-z) - logsigmoid(z))


class GDPO(SoftLabelMethod):
    """Geometric-averaged DPO."""

    initial_loss = 0.693147

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats; larger stays closer to the reference (DPO's: 0.1).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta

    def soft_loss(self, chosen: ResponseLogps, rejected: ResponseLogps, soft_labels: Tensor) -> Tensor:
        return gdpo_loss(averaged_margin(chosen.logratio, rejected.logratio, soft_labels), beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio


class GIPO(SoftLabelMethod):
    """Geometric-averaged IPO."""

    def __init__(self, *args: Any, tau: PositiveFloat = 0.1, **kwargs: Any):
        """
        Args:
            tau: strength of the KL constraint, in 1/nats; the target of the averaged margin is 1 / (2 tau) nats
                (IPO's: 0.1; the GDPO paper's value is not known to us).
        """
        super().__init__(*args, **kwargs)
        self.tau = tau

    def soft_loss(self, chosen: ResponseLogps, rejected: ResponseLogps, soft_labels: Tensor) -> Tensor:
        return gipo_loss(averaged_margin(chosen.logratio, rejected.logratio, soft_labels), tau=self.tau)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.tau * logps.logratio


class GROPO(GDPO):
    """Geometric-averaged ROPO, whose bounded term has no gradient on pairs that are far on the wrong side."""

    initial_loss = None

    def __init__(self, *args: Any, alpha: PositiveFloat = 14.0, **kwargs: Any):
        """
        Args:
            alpha: weight of the bounded term relative to the logistic one, no unit (from knowledge, ROPO's paper: 14;
                the GDPO paper may differ).
        """
        super().__init__(*args, **kwargs)
        self.alpha = alpha

    def soft_loss(self, chosen: ResponseLogps, rejected: ResponseLogps, soft_labels: Tensor) -> Tensor:
        margin = averaged_margin(chosen.logratio, rejected.logratio, soft_labels)
        return gropo_loss(margin, beta=self.beta, alpha=self.alpha)
