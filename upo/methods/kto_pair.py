"""KTO-pair, the "simple KTO" of early HALOs and TRL, after KTO (Ethayarajh et al., 2024),
https://arxiv.org/abs/2402.01306.

KTO on pairs without mismatched responses: the reference point of the chosen responses is the mean log-ratio of the
rejected ones, and conversely. Verified in TRL 0.8. Deviations: both reference points are means over the GLOBAL step
instead of a micro-batch, and have no gradient (in that code gradients flow through the mean). They cost one more
forward pass.
"""

from typing import Any

import torch
from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor

from upo.data.batch import Batch, Step
from upo.methods.common.base import LossTerm
from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps
from upo.runtime.collectives import sum_over_ranks


def kto_pair_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    chosen_kl: Float[Tensor, ""],
    rejected_kl: Float[Tensor, ""],
    *,
    beta: float,
) -> Float[Tensor, "pairs"]:
    """Mean of 1 - sigmoid(beta (r_w - k_l)) and 1 - sigmoid(beta (k_w - r_l)), k = max(0, mean r) of each side.

    One value per pair, unreduced; 1/2 where policy and reference agree.
    """
    chosen = torch.sigmoid(beta * (rejected_kl - chosen_logratio))  # 1 - sigmoid(x) = sigmoid(-x)
    rejected = torch.sigmoid(beta * (rejected_logratio - chosen_kl))
    return 0.5 * (chosen + rejected)


class KTOPair(PairwiseMethod):
    """KTO on pairs: the mean log-ratio of one side is the reference point of the other."""

    logged_statistics = ("kl/chosen", "kl/rejected")
    metric_names = (*PairwiseMethod.metric_names, *logged_statistics)
    initial_loss = 0.5

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, **kwargs: Any):
        """
        Args:
            beta: risk aversion, in 1/nats; with larger values the loss saturates at smaller log-ratios (KTO's: 0.1).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta

    @torch.no_grad()
    def statistics(self, step: Step) -> dict[str, Tensor]:
        """max(0, mean log-ratio) of chosen and of rejected responses of the GLOBAL step, in nats."""
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in step.micro_batches:
            logratio = self.response_logps(batch.responses).logratio.double()
            if not batch.dummy:
                total += torch.stack([logratio[0::2].sum(), logratio[1::2].sum()])
        chosen, rejected = (sum_over_ranks(total) / step.counts["prompts"]).clamp(min=0).float()
        return {"kl/chosen": chosen, "kl/rejected": rejected}

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        values = kto_pair_loss(
            logps[0::2].logratio,
            logps[1::2].logratio,
            statistics["kl/chosen"],
            statistics["kl/rejected"],
            beta=self.beta,
        )
        return {"preference": LossTerm(values, "prompts")}

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
