"""LN-DPO and LN-DPOP, https://arxiv.org/abs/2407.15229 (A Practical Analysis of Human Alignment with *PO, 2024).

DPO on log-ratios a token, so that a response's length does not scale its reward; LN-DPOP adds DPO-Positive's penalty
where the chosen response has become less likely than under the reference. Partly verified: LN-DPO is as in other
open-source trainers ("dpo_norm"); the form of LN-DPOP is known only from descriptions, its lambda is not.
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
    """-log sigmoid(beta (r_w / |w| - r_l / |l| - lambda max(0, -r_w / |w|))); one value a pair, unreduced.

    LN-DPO has lambda = 0.
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
            beta: strength of the KL constraint, in tokens/nat: DPO's beta times the length of a response
                (open-instruct: 5; the paper searches about 1 to 3.5, as recalled).
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
            lam: weight of the penalty on a falling chosen likelihood, 0 or more; 0 is LN-DPO. The default is ours.
        """
        super().__init__(*args, **kwargs)
        self.lam = lam
