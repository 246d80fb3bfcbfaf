"""oPPO, offline one-step PPO: the baseline of KTO (Ethayarajh et al., 2024), https://arxiv.org/abs/2402.01306.

PPO's clipped objective on the responses of the data set, as if they were samples of the reference: the reward is +1 or
-1 on a response's last token, the log-probs before the update are the reference's, and each step sees new data (one
epoch). Advantages are whitened: mean 0 and standard deviation 1 over all tokens of the step.

    A_t   = sum_{i >= t} (gamma lam)^(i - t) delta_i,   delta_t = r_t + gamma V_{t+1} - V_t      then whitened
    loss  = mean_t max(-A_t ratio_t, -A_t clip(ratio_t, low, high))
            + c_V mean_t 1/2 (V_t - sum_{i >= t} gamma^(i - t) r_i)^2 + c_KL mean_t log(policy / reference)_t

`AOPPO` is a baseline of the UPO paper (https://arxiv.org/abs/2405.17956): R, the weighted auxiliary rewards, is added
to the reward of the last token. Advantages are whitened over the tokens of the GLOBAL step, from a pass without
gradient before the first backward pass, so that they do not depend on how the step is split.
Deviations from HALOs: V_t is fitted to the rewards from token t on (HALOs: from token t + 1 on, which is one token off
the V in delta). The third term is a mean over the data, not over samples of the policy, and therefore no KL divergence:
it has no lower bound and lowers the likelihood of the data. It has this sign in a later version of HALOs, which clips
to 1 +- 0.5; the version of the papers has the other sign, log(reference / policy), i.e. `kl_coefficient: -0.1`.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import pad

from upo.data.batch import Batch, Step
from upo.errors import UserError
from upo.functional.segments import discounted_sums
from upo.methods.common.base import LossTerm, Stage
from upo.methods.common.families import UnpairedMethod
from upo.methods.common.heads import SideHead
from upo.methods.common.needs import SUMS, Needs
from upo.methods.common.value_head import ValueHead
from upo.methods.upo import REWARD_WEIGHTS
from upo.models.logps import ResponseLogps, objective
from upo.runtime.collectives import sum_over_ranks

MAX_LOGRATIO = 20.0
"""Cap on a token's log-ratio, in nats: beyond it exp could overflow in float32."""


def ppo_loss(
    logratio: Float[Tensor, "tokens"], advantage: Float[Tensor, "tokens"], *, low: float, high: float
) -> Float[Tensor, "tokens"]:
    """max(-A ratio, -A clip(ratio, low, high)) of each token, unreduced; advantages carry no gradient."""
    ratio, advantage = torch.exp(logratio.clamp(max=MAX_LOGRATIO)), advantage.detach()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(low, high))


def generalized_advantage(
    reward: Float[Tensor, "tokens"],
    value: Float[Tensor, "tokens"],
    row: Int[Tensor, "tokens"],
    *,
    gamma: float,
    lam: float,
) -> Float[Tensor, "tokens"]:
    """A_t of Schulman et al. (2016), https://arxiv.org/abs/1506.02438, equation 16; V is 0 after the last token.

    Args:
        value: V_t, the expected sum of rewards from token t on, given the tokens before t.
        row: index of the response that each token belongs to; tokens are in order, response by response.
    """
    next_value = pad(torch.where(row[1:] == row[:-1], value[1:], 0.0), (0, 1))
    return discounted_sums(reward + gamma * next_value - value, row, gamma * lam)


class OPPO(UnpairedMethod):
    """Offline one-step PPO with a reward of +1 or -1 on the last token."""

    value_head: ValueHead

    needs = Needs(policy={"token_logps", "hidden"}, reference={"token_logps"}, reward=SUMS)
    logged_statistics = ("advantages/mean", "advantages/std")
    metric_names = (
        *UnpairedMethod.metric_names,
        *("loss/preference", "loss/value", "loss/kl", *logged_statistics, "clipped"),
    )
    initial_loss = 0.0

    def __init__(
        self,
        *args: Any,
        gamma: ClosedUnitInterval = 0.99,
        lam: ClosedUnitInterval = 0.95,
        clip_low: ClosedUnitInterval = 0.5,
        clip_high: PositiveFloat = 2.0,
        value_coefficient: NonNegativeFloat = 0.01,
        kl_coefficient: float = 0.1,
        value_lr: PositiveFloat = 1e-3,
        **kwargs: Any,
    ):
        """
        Args:
            gamma: discount of rewards per token, in [0, 1] (HALOs: 0.99).
            lam: lambda of the generalized advantage, in [0, 1] (HALOs: 0.95); 1 uses the rewards alone, 0 the value of
                the next token alone.
            clip_low: ratio below which tokens of negative advantage have no gradient (HALOs: 0.5).
            clip_high: ratio above which tokens of positive advantage have no gradient, 1 or more (HALOs: 1 / 0.5, later
                1.5).
            value_coefficient: c_V, weight of the value loss (HALOs: 0.01).
            kl_coefficient: c_KL, weight of the mean log-ratio over the data's tokens, in 1/nats (as published: 0.1, in
                the formula above). With a positive one the loss has no lower bound, so train one epoch at most; a
                negative one adds likelihood of the data and is bounded (the stories study uses -0.1).
            value_lr: learning rate of the value head (ours: 0.001; at the policy's a fresh head would hardly move).
        """
        super().__init__(*args, **kwargs)
        if clip_high < 1:
            raise UserError(
                f"clip_high={clip_high:g} would clip a policy that equals the reference; set it to 1 or more"
            )
        self.gamma, self.lam = gamma, lam
        self.clip_low, self.clip_high = clip_low, clip_high
        self.value_coefficient, self.kl_coefficient = value_coefficient, kl_coefficient
        self.value_lr = float(value_lr)

    def heads(self) -> dict[str, SideHead]:
        return {"value_head": SideHead(lambda: ValueHead(self.policy.hidden_size, dropout=0.0), self.value_lr)}

    def last_reward(self, batch: Batch) -> Float[Tensor, "N"]:
        """The reward of each response's last token."""
        return 2.0 * batch.preferred - 1.0

    def token_rewards(self, batch: Batch) -> Float[Tensor, "tokens"]:
        """The reward of each token: that of the response on its last token, 0 on the others."""
        row = batch.responses.response_index
        last = pad(row[1:] != row[:-1], (0, 1), value=True)
        return torch.where(last, self.last_reward(batch)[row], 0.0)

    def advantages(self, batch: Batch, value: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
        """The generalized advantage of each token, before whitening."""
        rewards, row = self.token_rewards(batch).to(value.dtype), batch.responses.response_index
        return generalized_advantage(rewards, value.detach(), row, gamma=self.gamma, lam=self.lam)

    @torch.no_grad()
    def statistics(self, step: Step) -> dict[str, Tensor]:
        """Mean and standard deviation of the advantages of all tokens of the GLOBAL step."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        batch: Batch
        for batch in step.micro_batches:
            hidden = self.policy(batch.responses, ("hidden",))["hidden"]
            if not batch.dummy:
                a = self.advantages(batch, self.value_head(hidden)).double()
                sums += torch.stack([torch.ones_like(a).sum(), a.sum(), (a**2).sum()])
        number, total, squares = sum_over_ranks(sums)
        mean = total / number
        variance = (squares / number - mean**2).clamp(min=0)
        return {"advantages/mean": mean, "advantages/std": (variance + 1e-8).sqrt()}

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        rho = self.token_logratio(logps)
        value = self.value_head(logps.outputs["hidden"]).to(rho.dtype)
        raw = self.advantages(batch, value)
        whitened = ((raw - statistics["advantages/mean"]) / statistics["advantages/std"]).to(rho.dtype)
        returns = discounted_sums(self.token_rewards(batch).to(rho.dtype), batch.responses.response_index, self.gamma)
        return {
            "preference": LossTerm(ppo_loss(rho, whitened, low=self.clip_low, high=self.clip_high), "tokens"),
            "value": LossTerm(0.5 * (value - returns) ** 2, "tokens", weight=self.value_coefficient),
            "kl": LossTerm(rho, "tokens", weight=self.kl_coefficient),
        }

    def token_logratio(self, logps: ResponseLogps) -> Float[Tensor, "tokens"]:
        """log(policy / reference) of each token, in nats."""
        return logps.outputs["token_logps"] - logps.reference_outputs["token_logps"]

    def reward(self, logps: ResponseLogps) -> Tensor:
        return logps.logratio

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        super().update_metrics(stage, batch, logps)
        ratio = self.token_logratio(logps).exp()
        self.means(stage).update(clipped=((ratio < self.clip_low) | (ratio > self.clip_high)).float())


class AOPPO(OPPO):
    """oPPO whose reward is +1 or -1 plus R, the weighted auxiliary rewards."""

    metric_names = (*OPPO.metric_names, "objective/chosen", "objective/rejected")

    def __init__(self, *args: Any, reward_weights: dict[str, float] | None = None, **kwargs: Any):
        """
        Args:
            reward_weights: w_i by name of a reward in `data.rewards`; null is {readability: 0.05, safety: 0.95} (UPO
                paper).
        """
        self.reward_weights = dict(reward_weights or REWARD_WEIGHTS)
        self.needs |= Needs(rewards=self.reward_weights)
        super().__init__(*args, **kwargs)

    def objective(self, batch: Batch) -> Float[Tensor, "N"]:
        """R = sum_i w_i r_i of each response."""
        assert batch.responses.rewards is not None, "the data have the columns named in `needs.rewards`"
        return objective(batch.responses.rewards, self.reward_weights)

    def last_reward(self, batch: Batch) -> Float[Tensor, "N"]:
        return super().last_reward(batch) + self.objective(batch)

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        super().update_metrics(stage, batch, logps)
        r, good = self.objective(batch), batch.preferred
        self.means(stage).update(**{"objective/chosen": r[good], "objective/rejected": r[~good]})
