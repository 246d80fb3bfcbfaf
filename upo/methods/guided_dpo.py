"""Guided DPO, the loss of mrDPO's rounds (Tang et al., 2024), https://arxiv.org/abs/2410.06682.

Differs from DPO: the likelihood of a gold target, which is neither of the pair, is learned beside it. Multi-round DPO
(mrDPO) repeats it: between rounds the policy becomes the reference, see `upo.callbacks.rounds.Rounds`. Verified in the
authors' code. Deviations: data are triples (gold is the best of three ranked responses); the code takes the chosen one
where there is no gold target; new pairs between rounds are runs of their own. Rebirth tuning, SFT of the first model on
what the last one writes, is a further stage on targets by `upo.callbacks.rebirth.RebirthTargets`.
"""

from typing import Any

from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from upo.methods.common.needs import SUMS, Needs
from upo.methods.dpo import dpo_loss
from upo.methods.tpo_triple import TPO
from upo.models.logps import ResponseLogps


class GuidedDPO(TPO):
    """DPO with the likelihood of a gold target, for the rounds of mrDPO"""

    needs = Needs(reference=SUMS, reward=SUMS)

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, gold_weight: NonNegativeFloat = 0.1, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (code: 0.1).
            gold_weight: weight of the gold response's mean log-prob a token; 0 is DPO (code: 0.1).
        """
        super().__init__(*args, beta=beta, alpha=gold_weight, **kwargs)

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return dpo_loss(chosen.logratio, rejected.logratio, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
