"""AOT, Alignment via Optimal Transport (Melnyk et al., 2024), https://arxiv.org/abs/2406.05882.

DPO asks for a margin in every pair. AOT asks that the DISTRIBUTION of chosen rewards dominates that of rejected rewards
at every quantile. In one dimension the optimal coupling of two samples is sorting, so DPO's loss is taken between
values of equal rank. Paired: margins of the policy against margins of the reference. Unpaired: rewards of desirable
against rewards of undesirable responses, which may answer different prompts and may differ in number.

Verified: the losses, in TRL. Deviations: values are sorted over the GLOBAL step (sorted within micro-batches of one
pair, the loss would be DPO's); hard sort only; unequal numbers are coupled exactly by their quantile functions, where
TRL wants equal halves. TRL up to 0.23 calls the unpaired loss `aot_pair`.
"""

from typing import Any

import torch
from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor

from upo.methods.common.families import PairwiseMethod, UnpairedMethod
from upo.methods.common.ranges import FlipRate
from upo.methods.common.stepwise import CoupledLoss
from upo.methods.dpo import dpo_loss
from upo.models.logps import ResponseLogps


def aot_paired_loss(
    chosen_logps: Float[Tensor, "pairs"],
    rejected_logps: Float[Tensor, "pairs"],
    chosen_reference: Float[Tensor, "pairs"],
    rejected_reference: Float[Tensor, "pairs"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(beta (u_(i) - v_(i))), u and v the sorted margins of policy and reference.

    One value per rank i of the sorted order, unreduced.
    """
    u = (chosen_logps - rejected_logps).sort().values
    v = (chosen_reference - rejected_reference).sort().values
    return dpo_loss(u, v, beta=beta, label_smoothing=label_smoothing)


def aot_unpaired_loss(
    desirable_logratio: Float[Tensor, "n"],
    undesirable_logratio: Float[Tensor, "m"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, "couples"], Float[Tensor, "couples"]]:
    """-log sigmoid(beta (u_(i) - v_(j))) of every couple (i, j) of the optimal coupling, and the couples' masses.

    u and v are the sorted log-ratios of desirable and undesirable responses. Masses are positive and sum to 1; the loss
    is the mean weighted by them. With n = m the couples are those of equal rank, each of mass 1/n. Where n or m is 0,
    both results are empty.
    """
    n, m = len(desirable_logratio), len(undesirable_logratio)
    if n == 0 or m == 0:
        empty = torch.cat([desirable_logratio, undesirable_logratio])[:0]
        return empty, empty
    device = desirable_logratio.device
    # The quantile functions jump at i / n and at j / m; in units of 1 / (n m) these are integers, hence exact.
    jumps_u = torch.arange(1, n + 1, device=device) * m
    jumps_v = torch.arange(1, m + 1, device=device) * n
    ends = torch.cat([jumps_u, jumps_v]).unique()
    masses = ends.diff(prepend=ends.new_zeros(1)).to(desirable_logratio.dtype) / (n * m)
    u = desirable_logratio.sort().values[(ends - 1) // m]
    v = undesirable_logratio.sort().values[(ends - 1) // n]
    return dpo_loss(u, v, beta=beta, label_smoothing=label_smoothing), masses


class AOTPaired(CoupledLoss, PairwiseMethod):
    """Alignment via Optimal Transport on pairs."""

    initial_loss = 0.693147

    def __init__(self, *args: Any, beta: PositiveFloat = 0.01, label_smoothing: FlipRate = 0.0, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats; larger stays closer to the reference (paper: 0.01).
            label_smoothing: probability that a pair's label is flipped, in [0, 0.5) (paper: 0, the logistic loss).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.label_smoothing = beta, label_smoothing

    def coupled_loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        logps = chosen.logps, rejected.logps, chosen.reference, rejected.reference
        return aot_paired_loss(*logps, beta=self.beta, label_smoothing=self.label_smoothing).mean()

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio


class AOTUnpaired(CoupledLoss, UnpairedMethod):
    """Alignment via Optimal Transport on labelled responses."""

    initial_loss = 0.693147

    def __init__(self, *args: Any, beta: PositiveFloat = 0.01, label_smoothing: FlipRate = 0.0, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats; larger stays closer to the reference (paper: 0.01).
            label_smoothing: probability that labels are flipped, in [0, 0.5) (paper: 0, the logistic loss).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.label_smoothing = beta, label_smoothing

    def coupled_loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        options = {"beta": self.beta, "label_smoothing": self.label_smoothing}
        values, masses = aot_unpaired_loss(chosen.logratio, rejected.logratio, **options)
        return (values * masses).sum()

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
