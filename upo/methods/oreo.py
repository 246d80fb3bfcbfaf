"""OREO, Offline REasoning Optimization (Wang et al., 2024), https://arxiv.org/abs/2412.16145.

Unpaired solutions with a reward R at their end (1 right, 0 wrong). Policy and value function are fitted to the soft
Bellman equation V(s_t) = R - beta sum_{i >= t} rho_i, rho_i = log policy(a_i|s_i) - log reference(a_i|s_i), so that
credit is assigned to single tokens (OREO), lines (StepOREO) or the whole response (TrajectoryOREO, which is DRO up to a
factor 2).

    value:   mean_t (V(s_t) + beta sum_{i >= t} sg[rho_i] - R)^2
    policy:  mean_t (sg[V(s_t)] + beta (rho_t + sg[sum_{i > t} rho_i]) - R)^2 + kappa KL(policy || reference)_t

Verified in the official code, beta and kappa included. Deviations: V is a head on the policy's detached hidden states,
where the authors train a second model; both are updated in one step, the policy with the V before it, as there.
"""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import pad

from upo.data.batch import Batch
from upo.data.layout import Responses
from upo.functional.segments import later_sums, segment_means
from upo.methods.common.base import LossTerm
from upo.methods.common.families import UnpairedMethod
from upo.methods.common.heads import SideHead
from upo.methods.common.needs import SUMS, Needs
from upo.methods.common.value_head import ValueHead
from upo.models.logps import ResponseLogps


def oreo_policy_loss(
    logratio: Float[Tensor, "steps"],
    value: Float[Tensor, "steps"],
    reward: Float[Tensor, "N"],
    owner: Int[Tensor, "steps"],
    *,
    beta: float,
) -> Float[Tensor, "N"]:
    """mean_t (sg[V_t] + beta (rho_t + sg[sum_{i > t} rho_i]) - R)^2 of each response, unreduced.

    Args:
        owner: index of the response that each step (a token or a line) belongs to; steps are in order, response by
            response.
    """
    error = value.detach() + beta * (logratio + later_sums(logratio, owner)) - reward[owner]
    return segment_means(error**2, owner, len(reward))


def oreo_value_loss(
    logratio: Float[Tensor, "steps"],
    value: Float[Tensor, "steps"],
    reward: Float[Tensor, "N"],
    owner: Int[Tensor, "steps"],
    *,
    beta: float,
) -> Float[Tensor, "N"]:
    """mean_t (V_t + beta sum_{i >= t} sg[rho_i] - R)^2 of each response, unreduced.

    Args:
        value: V_t, read before step t.
        owner: as in `oreo_policy_loss`.
    """
    error = value + beta * (logratio.detach() + later_sums(logratio, owner)) - reward[owner]
    return segment_means(error**2, owner, len(reward))


class OREO(UnpairedMethod):
    """Offline reasoning optimization, with a value and a squared error for every token."""

    value_head: ValueHead

    needs = Needs(policy={"token_logps", "hidden", "reverse_kl"}, reference={"token_logps"}, reward=SUMS)
    metric_names = (*UnpairedMethod.metric_names, "loss/preference", "loss/value", "loss/kl")

    def __init__(
        self,
        *args: Any,
        beta: PositiveFloat = 0.03,
        kappa: NonNegativeFloat = 0.01,
        wrong_reward: float = 0.0,
        value_lr: PositiveFloat = 1e-3,
        **kwargs: Any,
    ):
        """
        Args:
            beta: strength of the KL constraint, in units of reward per nat (paper: 0.03).
            kappa: weight of KL(policy || reference), over the whole vocabulary and averaged over tokens (paper: 0.01).
            wrong_reward: R of undesirable responses; desirable ones have 1 (paper, mathematics: 0; official code: -1,
                which its scripts replace by 0).
            value_lr: learning rate of the value head (ours: 0.001; the authors' second model has the policy's 5e-6, at
                which a fresh head would hardly move).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.kappa = beta, kappa
        self.wrong_reward, self.value_lr = wrong_reward, float(value_lr)

    def heads(self) -> dict[str, SideHead]:
        return {"value_head": SideHead(lambda: ValueHead(self.policy.hidden_size, dropout=0.0), self.value_lr)}

    def starts(self, responses: Responses) -> Bool[Tensor, "tokens"]:
        """Mask of the tokens at which a step begins: here all of them."""
        return torch.ones_like(responses.response_index, dtype=torch.bool)

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        starts = self.starts(batch.responses)
        rho = logps.outputs["token_logps"] - logps.reference_outputs["token_logps"]
        logratio = rho.new_zeros(int(starts.sum())).index_add(0, starts.cumsum(0) - 1, rho)
        owner = batch.responses.response_index[starts]
        value = self.value_head(logps.outputs["hidden"][starts]).to(rho.dtype)
        reward = torch.where(batch.preferred, 1.0, self.wrong_reward).to(rho.dtype)
        return {
            "preference": LossTerm(oreo_policy_loss(logratio, value, reward, owner, beta=self.beta), "responses"),
            "value": LossTerm(oreo_value_loss(logratio, value, reward, owner, beta=self.beta), "responses"),
            "kl": LossTerm(logps.sums(logps.outputs["reverse_kl"]) / logps.lengths, "responses", weight=self.kappa),
        }

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio


class TrajectoryOREO(OREO):
    """OREO with one value and one squared error for the whole response."""

    def starts(self, responses: Responses) -> Bool[Tensor, "tokens"]:
        return pad(responses.response_index[1:] != responses.response_index[:-1], (1, 0), value=True)


class StepOREO(TrajectoryOREO):
    """OREO with a value and a squared error for each reasoning step: a line with the line breaks at its end."""

    @cached_property
    def breaks(self) -> Bool[Tensor, "V"]:
        """Mask over the vocabulary: tokens that contain a line break."""
        tokenizer = self.policy.tokenizer
        return torch.tensor(["\n" in tokenizer.decode([i]) for i in range(len(tokenizer))])

    def starts(self, responses: Responses) -> Bool[Tensor, "tokens"]:
        at_break = self.breaks.to(responses.targets.device)[responses.targets]
        return super().starts(responses) | (pad(at_break[:-1], (1, 0)) & ~at_break)
