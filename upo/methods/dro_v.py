"""DRO-V, Direct Reward Optimisation with a value (Richemond et al., 2024), https://arxiv.org/abs/2405.19107.

Single responses with a reward, no pairs: the optimum of the KL-constrained problem satisfies
r - V(x) = tau rho, rho = log(policy / reference), for every response, which is fitted by least squares. Policy and
value have separate gradients: the policy's is that of 0.5 (r - V - tau rho)^2 divided by tau, with V constant; the
value's is that of the same square with rho constant.

r is +1 for desirable and -1 for undesirable responses plus weighted auxiliary rewards, standardised to mean 0 and
variance 1 over the TRAINING data, as in the paper. Mean and deviation are measured once before the first step, so that
they neither depend on how a step is split nor change in a resumed run. (Distributionally robust optimisation, also
called DRO, is another method.)

Verified: both losses. Deviations: V is a head on the policy's detached hidden state at the end of the prompt, where the
authors found a second model with a value at every token to be better; the head has its own learning rate.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from upo.data.batch import Batch
from upo.data.rounds import Round
from upo.data.units import Unit
from upo.errors import UserError
from upo.methods.common.base import LossTerm
from upo.methods.common.families import UnpairedMethod
from upo.methods.common.heads import SideHead
from upo.methods.common.needs import Needs
from upo.methods.common.value_head import ValueHead
from upo.models.logps import ResponseLogps


def dro_v_policy_loss(
    logratio: Float[Tensor, "N"], value: Float[Tensor, "N"], reward: Float[Tensor, "N"], *, tau: float
) -> Float[Tensor, "N"]:
    """(r - sg[V] - tau rho)^2 / (2 tau), one value per response, unreduced; 0 at the optimum.

    Equal to the paper's -[log policy (r - V) - tau / 2 rho^2] up to terms that do not depend on the policy.
    """
    return (reward - value.detach() - tau * logratio) ** 2 / (2 * tau)


def dro_v_value_loss(
    logratio: Float[Tensor, "N"], value: Float[Tensor, "N"], reward: Float[Tensor, "N"], *, tau: float
) -> Float[Tensor, "N"]:
    """0.5 (V - sg[r - tau rho])^2, one value per response, unreduced."""
    return 0.5 * (value - (reward - tau * logratio).detach()) ** 2


class DROV(UnpairedMethod):
    """Direct Reward Optimisation with a learned value."""

    value_head: ValueHead

    needs = UnpairedMethod.needs | Needs(policy={"prompt_hidden"})
    metric_names = (*UnpairedMethod.metric_names, "loss/preference", "loss/value")
    reward_scale: Tensor
    """Mean and standard deviation of r over the training data [2], in units of r."""

    def __init__(
        self,
        *args: Any,
        tau: PositiveFloat = 1.0,
        preference_weight: NonNegativeFloat = 1.0,
        reward_weights: dict[str, float] | None = None,
        reward_scale: tuple[float, PositiveFloat] | None = None,
        value_lr: PositiveFloat = 1e-3,
        **kwargs: Any,
    ):
        """
        Args:
            tau: strength of the KL constraint, in units of the standardised reward per nat (paper: 1).
            preference_weight: factor of the label (+1 or -1) in r (ours: 1).
            reward_weights: factors of auxiliary rewards in r, by their names in `data.rewards`; null: none (paper).
            reward_scale: mean and standard deviation to standardise r with, e.g. [0, 1] leaves r unchanged; null
                measures them on the training data (paper).
            value_lr: learning rate of the value head (ours: 0.001; at the policy's a fresh head would hardly move).
        """
        self.reward_weights = dict(reward_weights or {})
        self.needs |= Needs(rewards=self.reward_weights)
        super().__init__(*args, **kwargs)
        self.tau, self.preference_weight = tau, preference_weight
        self.value_lr = float(value_lr)
        self.measures_scale = reward_scale is None
        self.register_buffer("reward_scale", torch.tensor(reward_scale or (0.0, 1.0), dtype=torch.float32))

    def heads(self) -> dict[str, SideHead]:
        return {"value_head": SideHead(lambda: ValueHead(self.policy.hidden_size, dropout=0.0), self.value_lr)}

    def prepare(self, round: Round) -> Round:
        """Measures mean and deviation of r on the training data, where no scale is given; the round stays as it is."""
        if self.measures_scale:
            self.reward_scale.copy_(torch.tensor(self.measure_scale(round.train.units)))
        return super().prepare(round)

    def measure_scale(self, units: Sequence[Unit]) -> tuple[float, float]:
        """Mean and standard deviation of r over the responses of the training data.

        Raises:
            UserError: all responses have the same r.
        """
        responses = [r for u in units for r in u.example.responses]
        labels = torch.tensor([self.preference_weight * (1 if r.desirable else -1) for r in responses])
        auxiliary = [sum(w * r.rewards[name] for name, w in self.reward_weights.items()) for r in responses]
        rewards = labels.double() + torch.tensor(auxiliary, dtype=torch.float64)
        deviation = rewards.std(correction=0).item()
        if deviation < 1e-9:
            raise UserError(
                f"DROV learns from differences in rewards, but all {len(rewards)} responses of the training data have "
                f"r = {rewards[0]:.4g}; give it desirable and undesirable ones, or `reward_weights`"
            )
        return rewards.mean().item(), deviation

    def standardized(self, batch: Batch, logps: ResponseLogps) -> Float[Tensor, "N"]:
        """r of each response, standardised."""
        reward = self.preference_weight * (2 * batch.preferred.to(self.reward_scale.dtype) - 1)
        if self.reward_weights:
            reward = reward + logps.objective(self.reward_weights)
        return (reward - self.reward_scale[0]) / self.reward_scale[1]

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        reward = self.standardized(batch, logps)
        value = self.value_head(logps.outputs["prompt_hidden"])[logps.prompt_index]
        return {
            "preference": LossTerm(dro_v_policy_loss(logps.logratio, value, reward, tau=self.tau), "responses"),
            "value": LossTerm(dro_v_value_loss(logps.logratio, value, reward, tau=self.tau), "responses"),
        }

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.tau * logps.logratio
