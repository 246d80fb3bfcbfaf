"""Reward-weighted SFT: the likelihood of every response, chosen and rejected alike, times its auxiliary reward.

Weighted behaviour cloning, a baseline of A-LOL (Baheti et al., ICLR 2024), https://arxiv.org/abs/2305.14718. Differs
from SFT: auxiliary rewards instead of labels decide what is imitated, and the loss is a mean over responses, not over
tokens. Differs from UPO's auxiliary term: no value is subtracted and there is no exponential, so that good responses to
easy prompts have the same weight as those to hard ones. Preferences are not used; a response with reward 0 has no
gradient. Deviation from the baseline: a response's log-prob is its mean over tokens.
"""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from upo.data.batch import Batch
from upo.data.views import UnpairedView
from upo.errors import UserError
from upo.methods.common.base import LossTerm, Method, Stage
from upo.methods.common.needs import Needs
from upo.models.logps import ResponseLogps


def reward_weighted_loss(
    logps: Float[Tensor, "N"], lengths: Int[Tensor, "N"], rewards: Float[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """-R(x, y) log policy(y|x) / |y|, one value per response, unreduced."""
    return -rewards * logps / lengths


class RewardWeightedSFT(Method):
    """Likelihood of all responses, weighted by auxiliary rewards."""

    view = UnpairedView()
    length_normalized = True
    metric_names = tuple(f"{name}/{side}" for name in ("objective", "nll") for side in ("chosen", "rejected"))

    def __init__(self, *args: Any, reward_weights: dict[str, float], **kwargs: Any):
        """
        Args:
            reward_weights: w_i by name of a reward in `data.rewards`; R = sum_i w_i r_i must be 0 or more for every
                response.
        """
        self.reward_weights = dict(reward_weights)
        self.needs |= Needs(rewards=self.reward_weights)
        super().__init__(*args, **kwargs)

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        rewards = logps.objective(self.reward_weights)
        if (lowest := rewards.min()) < 0:
            raise UserError(
                f"a response has the reward {lowest:.4g}: RewardWeightedSFT would push its likelihood to 0; "
                "choose rewards and `reward_weights` that are never negative"
            )
        return {"nll": LossTerm(reward_weighted_loss(logps.logps, logps.lengths, rewards), "responses")}

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        rewards, good = logps.objective(self.reward_weights), batch.preferred
        values = {"objective": rewards, "nll": -logps.mean}
        self.means(stage).update(**{f"{name}/chosen": x[good] for name, x in values.items()})
        self.means(stage).update(**{f"{name}/rejected": x[~good] for name, x in values.items()})
