"""f-DPO (Wang et al., 2023), https://arxiv.org/abs/2309.16240: DPO under another f-divergence than reverse KL.

The implicit reward of DPO, beta log u with u = policy / reference, becomes beta f'(u): forward KL, Jensen-Shannon and
alpha-divergences keep more of the reference's variety than reverse KL does. Deviation: exponents are capped at 80,
where float32 would overflow; forward KL gets there on sequences of hundreds of tokens, and then learns nothing.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.functional.divergences import Divergence, JensenShannon
from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps


def f_dpo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    *,
    beta: float,
    divergence: Divergence,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(beta (f'(u_w) - f'(u_l))), u = exp(r); one value a pair, unreduced."""
    return -logsigmoid(beta * (divergence(chosen_logratio) - divergence(rejected_logratio)))


class FDPO(PairwiseMethod):
    """Direct Preference Optimization under an f-divergence."""

    reward_is_log_odds = True
    initial_loss = 0.693147

    def __init__(
        self,
        *args: Any,
        beta: PositiveFloat = 0.1,
        divergence: Divergence = JensenShannon(),
        **kwargs: Any,
    ):
        """
        Args:
            beta: strength of the divergence's penalty, in units of reward (paper: 0.1).
            divergence: ReverseKL (which is DPO), ForwardKL, JensenShannon or Alpha; the paper compares them all and
                names no default. ForwardKL, and Alpha near 1, learn nothing from a response that lost 80 nats.
        """
        super().__init__(*args, **kwargs)
        self.beta, self.divergence = beta, divergence

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return f_dpo_loss(chosen.logratio, rejected.logratio, beta=self.beta, divergence=self.divergence)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * self.divergence(logps.logratio)
