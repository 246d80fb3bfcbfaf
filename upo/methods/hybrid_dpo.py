"""Hybrid-DPO (2026), https://arxiv.org/abs/2602.11902: DPO that ignores a reference which prefers the wrong response.

The reference's margin ref_w - ref_l is used only where it is positive. In DPO a reference with a negative margin makes
the loss small before the policy has the pair in the right order. The authors call the method HyPO, as does the
unrelated https://arxiv.org/abs/2406.01462. Partly verified: the change of the margin was read; beta's default is DPO's.
"""

from typing import Any

from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.methods.common.families import PairwiseMethod
from upo.models.logps import ResponseLogps


def hybrid_dpo_loss(
    chosen_logps: Float[Tensor, "pairs"],
    rejected_logps: Float[Tensor, "pairs"],
    chosen_reference: Float[Tensor, "pairs"],
    rejected_reference: Float[Tensor, "pairs"],
    *,
    beta: float,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(beta ((pi_w - pi_l) - max(0, ref_w - ref_l))); one value per pair, unreduced."""
    reference_margin = (chosen_reference - rejected_reference).relu()
    return -logsigmoid(beta * (chosen_logps - rejected_logps - reference_margin))


class HybridDPO(PairwiseMethod):
    """DPO that uses the reference only on pairs that the reference orders rightly."""

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (DPO's: 0.1).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return hybrid_dpo_loss(chosen.logps, rejected.logps, chosen.reference, rejected.reference, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        """DPO's implicit reward: the clipped reference margin is defined for pairs only, not for a single response."""
        return self.beta * logps.logratio
