"""Controls of UPO (https://arxiv.org/abs/2405.17956): methods that must NOT do as well if the paper's claim is right.

Each has UPO's data, arguments and budget without one of its parts. A third control is UPO with `lam: 0`, plain
likelihood of all responses beside KTO; a fourth is `data.relabel`, KTO or DPO on labels that include the auxiliary
rewards.
"""

from typing import Any

import torch
from jaxtyping import Float
from jsonargparse.typing import NonNegativeInt
from torch import Tensor

from upo.data.batch import Batch
from upo.methods.common.base import LossTerm
from upo.methods.common.families import UnpairedMethod
from upo.methods.upo import UPO, AuxiliaryRewards
from upo.models.logps import ResponseLogps
from upo.runtime.seeding import seed_at


class UPOShuffled(UPO):
    """Control of UPO: each step's advantage weights, permuted at random over its responses.

    The weights of a step have UPO's distribution, and V is fitted as in UPO, but a weight says nothing about its
    response.
    """

    couples_weights = True

    def __init__(self, *args: Any, shuffle_seed: NonNegativeInt = 0, **kwargs: Any):
        """
        Args:
            shuffle_seed: seed of the permutation of the responses of the GLOBAL step, combined with the number of the
                step; it does not depend on how the step is split. All weights are needed before the first backward
                pass, which costs one more forward pass of the policy.
        """
        super().__init__(*args, **kwargs)
        self.shuffle_seed = shuffle_seed

    def couple(self, every: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Permuted log weights of all n responses of the GLOBAL step."""
        generator = torch.Generator().manual_seed(seed_at(self.shuffle_seed, self.global_step))
        permutation = torch.randperm(len(every), generator=generator).to(every.device)
        return super().couple(every)[permutation]


class AuxiliaryOnly(AuxiliaryRewards, UnpairedMethod):
    """Control of UPO: its auxiliary and value terms alone, without a preference loss.

    The reference is used for metrics only: rewards are log-ratios, in nats.
    """

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        return self.auxiliary_terms(batch, logps, statistics)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return logps.logratio
