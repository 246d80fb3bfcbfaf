"""KTO, Kahneman-Tversky Optimization (Ethayarajh et al., 2024), https://arxiv.org/abs/2402.01306.

Unpaired: each response by itself is pushed above or below a reference point z0, an estimate of KL(policy || reference)
from mismatched responses, which answer another prompt. Verified in HALOs and TRL. Deviations: z0 is taken over the
GLOBAL step (sum and count over all micro-batches and ranks, then clamped at 0), and each prompt gets the responses of
one fixed other prompt as its mismatched ones, so that z0 does not depend on how the step is split.
"""

import warnings
from typing import Any

import torch
from jaxtyping import Bool, Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from upo.data.batch import Step
from upo.data.partners import behind
from upo.data.units import Unit
from upo.data.views import UnpairedView
from upo.methods.common.families import UnpairedMethod
from upo.models.logps import ResponseLogps
from upo.runtime.collectives import sum_over_ranks


def kto_loss(
    logratio: Float[Tensor, "N"],
    desirable: Bool[Tensor, "N"],
    kl: Float[Tensor, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, "N"]:
    """Equation 8: w_d (1 - sigmoid(beta (r - z0))) if desirable, else w_u (1 - sigmoid(beta (z0 - r))).

    One value per response, unreduced; w_d / 2 or w_u / 2 where policy and reference agree.

    Args:
        kl: z0, in nats.
        desirable_weight: w_d.
        undesirable_weight: w_u.
    """
    margin = beta * (logratio - kl)
    return torch.where(
        desirable,
        desirable_weight * torch.sigmoid(-margin),  # 1 - sigmoid(x) = sigmoid(-x), without cancellation
        undesirable_weight * torch.sigmoid(margin),
    )


class KTOView(UnpairedView):
    """Labelled responses, and for z0 mismatched ones: each prompt with the responses of another prompt."""

    pairs_up = True

    def join(self, unit: Unit, partner: Unit | None, max_length: int) -> Unit:
        return unit if partner is None else unit.with_group(behind(unit, partner, max_length))


class KTO(UnpairedMethod):
    """Kahneman-Tversky Optimization."""

    view = KTOView()
    logged_statistics = ("kl",)
    metric_names = (*UnpairedMethod.metric_names, *logged_statistics)
    initial_loss = 0.5

    def __init__(
        self,
        *args: Any,
        beta: PositiveFloat = 0.1,
        desirable_weight: NonNegativeFloat = 1.0,
        undesirable_weight: NonNegativeFloat = 1.0,
        **kwargs: Any,
    ):
        """
        Args:
            beta: risk aversion, in 1/nats; with larger values the loss saturates at smaller log-ratios, and the policy
                stays closer to the reference (paper: 0.1).
            desirable_weight: weight of desirable responses (paper: 1). The paper advises to keep
                desirable_weight * n_desirable / (undesirable_weight * n_undesirable) in [1, 4/3].
            undesirable_weight: weight of undesirable responses (paper: 1).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight

    @torch.no_grad()
    def statistics(self, step: Step) -> dict[str, Tensor]:
        """z0 = max(0, mean log-ratio of the mismatched responses of the GLOBAL step), in nats."""
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in step.micro_batches:
            if batch.mismatched is not None:
                logratio = self.response_logps(batch.mismatched).logratio
                if not batch.dummy:
                    total += torch.stack([logratio.double().sum(), logratio.new_tensor(len(logratio)).double()])
        total = sum_over_ranks(total)
        if total[1] == 0:
            warnings.warn("z0 is 0: all prompts of the split are the same, so there is no mismatched response")
        return {"kl": (total[0] / total[1].clamp(min=1)).clamp(min=0).float()}

    def loss(self, logps: ResponseLogps, desirable: Tensor, statistics: dict[str, Tensor]) -> Tensor:
        return kto_loss(
            logps.logratio,
            desirable,
            statistics["kl"],
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
