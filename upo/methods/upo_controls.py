"""Controls of UPO (https://arxiv.org/abs/2405.17956): what must NOT do as well if its claim is right.

Each has UPO's data, arguments and budget and takes one thing away. `lam: 0` of UPO itself is a third control, plain
likelihood of all responses beside KTO; `data.relabel` a fourth, KTO or DPO on labels that know the objectives.
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
    """Control of UPO: each step's advantage weights, dealt out to its responses at random.

    Their distribution is UPO's, step by step, and V learns as there; what they say of a response is gone.
    """

    couples_weights = True

    def __init__(self, *args: Any, shuffle_seed: NonNegativeInt = 0, **kwargs: Any):
        """
        Args:
            shuffle_seed: with it and the number of the step all ranks draw the same permutation of the responses of
                the GLOBAL step, however it is cut. Costs a forward pass of the policy, for the other weights.
        """
        super().__init__(*args, **kwargs)
        self.shuffle_seed = shuffle_seed

    def couple(self, every: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        generator = torch.Generator().manual_seed(seed_at(self.shuffle_seed, self.global_step))
        return super().couple(every)[torch.randperm(len(every), generator=generator).to(every.device)]


class AuxiliaryOnly(AuxiliaryRewards, UnpairedMethod):
    """Control of UPO: its auxiliary term and its value alone, without any preference loss.

    The reference only serves the metrics: rewards are log-ratios, in nats.
    """

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        return self.auxiliary_terms(batch, logps, statistics)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return logps.logratio
