"""f-DPO (Wang et al., 2023), https://arxiv.org/abs/2309.16240: DPO under an f-divergence other than reverse KL.

DPO's implicit reward beta log u, u = policy / reference, becomes beta f'(u). Forward KL, Jensen-Shannon and
alpha-divergences keep more of the reference's diversity than reverse KL. Verified in the official code. Deviation:
exponents are capped at 80, because float32 would overflow; under forward KL the log-ratios of responses of hundreds of
tokens reach the cap, where the gradient is 0.
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
    """-log sigmoid(beta (f'(u_w) - f'(u_l))), u = exp(r); one value per pair, unreduced."""
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
            divergence: ReverseKL (which is DPO), ForwardKL, JensenShannon or Alpha (ours: JensenShannon; the paper
                compares all). ForwardKL, and Alpha near 1, give no gradient once a log-ratio is below -80 nats.
        """
        super().__init__(*args, **kwargs)
        self.beta, self.divergence = beta, divergence

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return f_dpo_loss(chosen.logratio, rejected.logratio, beta=self.beta, divergence=self.divergence)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * self.divergence(logps.logratio)
