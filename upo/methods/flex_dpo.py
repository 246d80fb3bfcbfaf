"""Flex-DPO, from "3D-Properties" (Yan et al., 2024), https://arxiv.org/abs/2406.07327.

DPO with one beta for each side: the gradient on the rejected response is made smaller, because falling likelihoods of
rejected responses lower those of other responses too. A second regulariser of the paper adds the likelihood of the
chosen response. With unequal betas the loss changes when both log-ratios are shifted: log Z(x) no longer cancels.
Partly verified: the method, a fixed pair of betas and its best values, in reviews of the paper. From knowledge: the
exact formula, and that the likelihood is a mean over tokens.
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
    """-log sigmoid(beta+ r_w - beta- r_l); one value per pair, unreduced; log 2 where policy and reference agree."""
    return -logsigmoid(beta_plus * chosen_logratio - beta_minus * rejected_logratio)


class FlexDPO(ChosenLikelihood):
    """DPO with a smaller beta for rejected responses and, optionally, the likelihood of the chosen ones."""

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
            beta_minus: beta of the rejected response, in 1/nats (paper: best near 0.08); equal to beta_plus gives DPO,
                values near 0 give little more than SFT.
            sft_weight: alpha, weight of the chosen response's negative log-likelihood per token (ours: 0, without it).
        """
        super().__init__(*args, **kwargs)
        self.beta_plus, self.beta_minus = beta_plus, beta_minus
        self.nll_weight = sft_weight

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return flex_dpo_loss(chosen.logratio, rejected.logratio, beta_plus=self.beta_plus, beta_minus=self.beta_minus)

    def reward(self, logps: ResponseLogps) -> Tensor:
        """beta_plus log(policy / reference) for chosen and rejected responses alike, so that rewards are comparable."""
        return self.beta_plus * logps.logratio
