"""Guided DPO, the loss of mrDPO's rounds (Tang et al., 2024), https://arxiv.org/abs/2410.06682.

Differs from DPO: the likelihood of a gold target, a third response beside the pair, is added. Multi-round DPO (mrDPO)
repeats the training: between rounds the policy becomes the reference, which `upo.callbacks.rounds.Rounds` does.
Verified in the official code. Deviations: the data are triples (the best of three ranked responses is the gold one),
where the official code takes the chosen response if there is no gold target; new pairs for each round take a run per
round. Rebirth tuning, SFT of the first model on responses of the last one, is a further stage on the targets that
`upo.callbacks.rebirth.RebirthTargets` writes.
"""

from typing import Any

from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from upo.methods.common.needs import SUMS, Needs
from upo.methods.dpo import dpo_loss
from upo.methods.tpo_triple import TPO
from upo.models.logps import ResponseLogps


class GuidedDPO(TPO):
    """DPO with the likelihood of a gold target, for the rounds of mrDPO."""

    needs = Needs(reference=SUMS, reward=SUMS)

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, gold_weight: NonNegativeFloat = 0.1, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (official code: 0.1).
            gold_weight: weight of the gold response's negative mean log-prob per token; 0 is DPO (official code: 0.1).
        """
        super().__init__(*args, beta=beta, alpha=gold_weight, **kwargs)

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return dpo_loss(chosen.logratio, rejected.logratio, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
