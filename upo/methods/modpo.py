"""MODPO, Multi-Objective DPO (Zhou et al., Findings of ACL 2024), https://arxiv.org/abs/2310.03708.

Differs from DPO: part of the policy's implicit reward is known, namely the weighted auxiliary rewards; their difference
within a pair is subtracted as a margin m. What is left, divided by the weight w_0 of the preference, is fitted as a
Bradley-Terry reward. The optimum is reference * exp((w_0 r_0 + sum_i w_i r_i) / beta), r_0 the users' reward, provided
that labels are as noisy as Bradley-Terry says. With one certain label per pair, m changes the size of the gradient and
never its sign.

Verified: the loss. Deviations: the paper's weights sum to 1; here nothing forces them to. Margins come from annotated
rewards; the authors may also take other policies' log-ratios.
"""

from typing import Any, ClassVar

from jaxtyping import Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.data.batch import Batch
from upo.methods.common.base import Stage
from upo.methods.common.families import PairwiseMethod
from upo.methods.common.needs import Needs
from upo.metrics.means import wins
from upo.models.logps import ResponseLogps


def modpo_loss(
    chosen_logratio: Float[Tensor, "pairs"],
    rejected_logratio: Float[Tensor, "pairs"],
    margin: Float[Tensor, "pairs"],
    *,
    beta: float,
    preference_weight: float,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid((beta (r_w - r_l) - m) / w_0); one value per pair, unreduced.

    Args:
        margin: m = sum_i w_i (r_i(y_w) - r_i(y_l)), the weighted auxiliary rewards of chosen less rejected.
        preference_weight: w_0 > 0.
    """
    return -logsigmoid((beta * (chosen_logratio - rejected_logratio) - margin) / preference_weight)


class MODPO(PairwiseMethod):
    """Multi-Objective DPO: auxiliary rewards as margins.

    Two rewards are reported, since tables may show either: `rewards/...` are those of all objectives together,
    beta log(policy / reference); `preference_rewards/...` are the official code's, the users' reward r_0 that is left.
    """

    metric_names: ClassVar[tuple[str, ...]] = (
        *PairwiseMethod.metric_names,
        *(f"preference_rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")),
    )

    def __init__(
        self,
        *args: Any,
        reward_weights: dict[str, float],
        preference_weight: PositiveFloat = 0.5,
        beta: PositiveFloat = 0.1,
        **kwargs: Any,
    ):
        """
        Args:
            reward_weights: w_i by name of a reward in `data.rewards`. Rewards must have the scale of the users' reward,
                where a difference of 1 means odds of e. In the paper they and preference_weight sum to 1.
            preference_weight: w_0, weight of the users' reward (ours: 0.5); 1 with reward weights of 0 is DPO. The
                margin is divided by it, so that small values saturate the sigmoid.
            beta: strength of the KL constraint, in 1/nats (official code: 0.1).
        """
        self.reward_weights = dict(reward_weights)
        self.needs |= Needs(rewards=self.reward_weights)
        super().__init__(*args, **kwargs)
        self.preference_weight, self.beta = preference_weight, beta

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        margin = chosen.objective(self.reward_weights) - rejected.objective(self.reward_weights)
        return modpo_loss(
            chosen.logratio, rejected.logratio, margin, beta=self.beta, preference_weight=self.preference_weight
        )

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        super().update_metrics(stage, batch, logps)
        reward = self.preference_reward(logps)
        chosen, rejected = reward[0::2], reward[1::2]
        values = (chosen, rejected, wins(chosen - rejected), chosen - rejected)
        names = (name for name in self.metric_names if name.startswith("preference_rewards/"))
        self.means(stage).update(**dict(zip(names, values, strict=True)))

    def preference_reward(self, logps: ResponseLogps) -> Tensor:
        """r_0 = (beta log(policy / reference) - sum_i w_i r_i) / w_0 of each response, up to a constant per prompt."""
        return (self.reward(logps) - logps.objective(self.reward_weights)) / self.preference_weight

    def reward(self, logps: ResponseLogps) -> Tensor:
        """w_0 r_0 + sum_i w_i r_i, the reward of all objectives together, up to a constant per prompt."""
        return self.beta * logps.logratio
