"""R-DPO, length-regularised DPO (Park, Rafailov, Ermon, Finn, 2024), https://arxiv.org/abs/2403.19159.

DPO for the reward r(x, y) - alpha |y|: alpha (|w| - |l|) is added to the margin, so that a pair whose chosen response
is longer has a larger margin already and a smaller gradient. alpha is not multiplied by beta. The sign is plus; with
the minus that some tables print, length would be rewarded. Other methods of similar names: robust DPO (rDPO), RDPO with
rationales. Verified in public code (oat). Deviations: none.
"""

from typing import Any

from jaxtyping import Float, Int
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps


def r_dpo_length_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    chosen_length: Int[Tensor, "pairs"],
    rejected_length: Int[Tensor, "pairs"],
    *,
    beta: float,
    alpha: float,
) -> Float[Tensor, "pairs"]:
    """Equation 9: -log sigmoid(beta (r_w - r_l) + alpha (|w| - |l|)); one value per pair, unreduced."""
    length_gap = (chosen_length - rejected_length).to(chosen_logratio.dtype)
    return -logsigmoid(beta * (chosen_logratio - rejected_logratio) + alpha * length_gap)


class LengthRegularizedDPO(PairwiseMethod):
    """DPO with a penalty on length."""

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, alpha: NonNegativeFloat = 0.01, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (paper: 0.1).
            alpha: penalty per token, in units of reward; 0 is DPO (from knowledge, paper: 0.01 to 0.05).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.alpha = beta, alpha

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return r_dpo_length_loss(
            chosen.logratio, rejected.logratio, chosen.lengths, rejected.lengths, beta=self.beta, alpha=self.alpha
        )

    def reward(self, logps: ResponseLogps) -> Tensor:
        """beta log(policy / reference), the reward with its penalty on length, r - alpha |y|: what the policy follows.

        Pairs were fitted by r alone, which is alpha |y| larger; accuracies are therefore lower where chosen responses
        are longer.
        """
        return self.beta * logps.logratio
