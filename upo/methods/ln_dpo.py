"""LN-DPO and LN-DPOP, https://arxiv.org/abs/2407.15229 (A Practical Analysis of Human Alignment with *PO, 2024).

DPO on log-ratios per token, so that rewards do not grow with a response's length. LN-DPOP adds DPO-Positive's penalty
where the chosen response is less likely than under the reference. Partly verified: LN-DPO, in TRL (`sigmoid_norm`) and
open-instruct (`dpo_norm`). From knowledge: the form of LN-DPOP; its lambda is not known to us.
"""

from typing import Any

from jaxtyping import Float, Int
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps


def ln_dpo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    chosen_length: Int[Tensor, "pairs"],
    rejected_length: Int[Tensor, "pairs"],
    *,
    beta: float,
    lam: float = 0.0,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(beta (r_w / |w| - r_l / |l| - lambda max(0, -r_w / |w|))); one value per pair, unreduced.

    LN-DPO is lambda = 0.
    """
    chosen, rejected = chosen_logratio / chosen_length, rejected_logratio / rejected_length
    return -logsigmoid(beta * (chosen - rejected - lam * (-chosen).relu()))


class LNDPO(PairwiseMethod):
    """Length-normalised DPO."""

    reward_is_log_odds = True
    initial_loss = 0.693147
    length_normalized = True

    def __init__(self, *args: Any, beta: PositiveFloat = 5.0, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in tokens/nat: about DPO's beta times the mean length of a response
                (open-instruct: 5; from knowledge, paper: 1 to 3.5).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.lam = beta, 0.0

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return ln_dpo_loss(
            chosen.logratio, rejected.logratio, chosen.lengths, rejected.lengths, beta=self.beta, lam=self.lam
        )

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio / logps.lengths


class LNDPOP(LNDPO):
    """Length-normalised DPO-Positive."""

    reward_is_log_odds = False

    def __init__(self, *args: Any, lam: NonNegativeFloat = 5.0, **kwargs: Any):
        """
        Args:
            lam: lambda, weight of the penalty on a chosen likelihood below the reference's; 0 is LN-DPO (ours: 5).
        """
        super().__init__(*args, **kwargs)
        self.lam = lam
