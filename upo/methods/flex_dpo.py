"""Flex-DPO, from "3D-Properties" (Yan et al., 2024), https://arxiv.org/abs/2406.07327.

DPO with a beta for each side: the rejected side's gradient is shrunk, because falling likelihoods of rejected
responses drag others down. A second regulariser of the paper adds the likelihood of the chosen response. The two betas
differ, so the loss is not invariant to a shift of both log-ratios: log Z(x) no longer cancels.
Partly verified: the method, the static pair of betas and its best values come from reviews of the paper; the exact
formula, and that the likelihood is a mean a token, do not.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.methods.common.likelihood import ChosenLikelihood
from upo.models.logps import ResponseLogps


def flex_dpo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    *,
    beta_plus: float,
    beta_minus: float,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(beta+ r_w - beta- r_l); one value a pair, unreduced; log 2 where policy and reference agree."""
    return -logsigmoid(beta_plus * chosen_logratio - beta_minus * rejected_logratio)


class FlexDPO(ChosenLikelihood):
    """DPO with a smaller beta for rejected responses, and likelihood of the chosen ones where wished."""

    initial_loss = 0.693147

    def __init__(
        self,
        *args: Any,
        beta_plus: PositiveFloat = 0.1,
        beta_minus: NonNegativeFloat = 0.08,
        sft_weight: NonNegativeFloat = 0.0,
        **kwargs: Any,
    ):
        """
        Args:
            beta_plus: beta of the chosen response, in 1/nats (paper: 0.1).
            beta_minus: beta of the rejected one, in 1/nats (paper: best near 0.08); equal to beta_plus it is DPO, far
                below it degrades to SFT.
            sft_weight: alpha, weight of the chosen response's negative log-likelihood a token; 0 leaves it out.
        """
        super().__init__(*args, **kwargs)
        self.beta_plus, self.beta_minus, self.nll_weight = beta_plus, beta_minus, sft_weight

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return flex_dpo_loss(chosen.logratio, rejected.logratio, beta_plus=self.beta_plus, beta_minus=self.beta_minus)

    def reward(self, logps: ResponseLogps) -> Tensor:
        """By beta_plus for all responses: one reward, whichever side a response is on."""
        return self.beta_plus * logps.logratio
