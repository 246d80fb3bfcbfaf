"""UPO, Unified Preference Optimization (Badrinath, Agarwal, Xu, TMLR 2025), https://arxiv.org/abs/2405.17956.

A preference loss for what users like, plus advantage-weighted likelihood for what designers want (safety, reading
level, ...): arbitrary rewards R(x, y) = sum_i w_i r_i(x, y), known for every response of the data set.

    L = L_pref + gamma L_aux + c_V L_V
    L_aux = - exp(lambda (R - V)) log policy(y|x) / |y|      over all responses, chosen and rejected alike
    L_V   = expectile_tau(R - V)                             fits a value head V(x) on detached hidden states

Differs from its parents by the two added terms. Where the paper is silent (marked [C] below) the choice is an option:
lambda's reading, tau, where V is read (the last prompt token: V must not see y), the head's own learning rate and
clipping. V in the exponent comes from a dropout-free pass of the head.
"""

import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from jsonargparse import lazy_instance
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from upo.data.batch import Batch
from upo.functional.value_losses import Expectile, ValueLoss
from upo.logps import ResponseLogps
from upo.methods.base import Method, Stage, Term
from upo.methods.dpo import DPO
from upo.methods.kto import KTO
from upo.metrics.weights import AdvantageWeights

REWARD_WEIGHTS = {"readability": 0.05, "safety": 0.95}
"""The paper's w_i."""


def weighted_objective(rewards: Float[Tensor, "N M"] | None, weights: dict[str, float]) -> Float[Tensor, "N"]:
    """R = sum_i w_i r_i, from the reward columns in the order of the weights."""
    assert rewards is not None, "the data module brings the columns named in `rewards`"
    return rewards @ rewards.new_tensor(list(weights.values()))


def auxiliary_loss(
    logps: Float[Tensor, "N"],
    lengths: Int[Tensor, "N"],
    weights: Float[Tensor, "N"],
    *,
    length_normalize: bool = True,
) -> Float[Tensor, "N"]:
    """-sg[weights] log policy(y|x) / |y|, one value a response, unreduced (equation 10)."""
    return -weights.detach() * (logps / lengths if length_normalize else logps)


def advantage_weights(objective: Float[Tensor, "N"], value: Float[Tensor, "N"], *, lam: float) -> Float[Tensor, "N"]:
    """exp(lambda (R - V)), neither clipped nor normalised."""
    return torch.exp(lam * (objective - value))


class ValueHead(nn.Module):
    """V(x): two hidden layers on the policy's last hidden state, in float32, on detached input."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU(),
            nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU(),
            nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
        with torch.autocast(hidden.device.type, enabled=False):
            dtype = self.layers[0].weight.dtype
            return self.layers(hidden.detach().to(dtype))[:, 0]


class AuxiliaryRewards(Method):
    """Adds designers' objectives to any preference method: `class UPO(AuxiliaryRewards, KTO)`."""

    extras = ("prompt_hidden",)

    def __init__(
        self,
        *args: Any,
        reward_weights: dict[str, float] | None = None,
        gamma: NonNegativeFloat = 0.5,
        lam: NonNegativeFloat = 5.0,
        length_normalize: bool = True,
        value_loss: ValueLoss = lazy_instance(Expectile),
        value_coefficient: NonNegativeFloat = 0.1,
        value_warmup_steps: NonNegativeInt = 100,
        value_lr: PositiveFloat = 1e-3,
        value_grad_clip: PositiveFloat = 0.1,
        value_dropout: ClosedUnitInterval = 0.1,
        **kwargs: Any,
    ):
        """
        Args:
            reward_weights: w_i by name of a reward in `data.rewards`; the paper's and default:
                {readability: 0.05, safety: 0.95}.
            gamma: weight of the auxiliary term (paper: 0.5).
            lam: lambda in exp(lambda (R - V)), per unit of reward; 0 is unweighted likelihood of all responses.
                [C] The likeliest reading of the paper is 5; other readings are 2 and 0.5.
            length_normalize: divide log policy(y|x) by |y| in the auxiliary term (paper); without it the optimum of
                that term alone is data(y) exp(lambda R), with it data(y) exp(lambda R) / |y|.
            value_loss: what fits V: Expectile (paper; tau is [C]) or Linex.
            value_coefficient: c_V (paper: 0.1).
            value_warmup_steps: optimizer steps during which only V learns from the rewards (paper: 100).
            value_lr: learning rate of the value head [C]: at the policy's a fresh head would hardly move.
            value_grad_clip: norm clipping of the value head alone.
            value_dropout: dropout inside the value head, in L_V only.
        """
        super().__init__(*args, **kwargs)
        self.reward_weights = dict(reward_weights or REWARD_WEIGHTS)
        self.rewards = tuple(self.reward_weights)
        self.gamma, self.lam, self.length_normalize = gamma, lam, length_normalize
        self.value_loss, self.value_coefficient = value_loss, value_coefficient
        self.value_warmup_steps, self.value_dropout = value_warmup_steps, value_dropout
        self.value_lr, self.value_grad_clip = float(value_lr), float(value_grad_clip)
        self.train_weights, self.val_weights = AdvantageWeights(), AdvantageWeights()
        self._warned = False

    @property
    def names(self) -> list[str]:
        losses = ("loss/preference", "loss/auxiliary", "loss/value")
        return [*super().names, *losses, "objective/chosen", "objective/rejected"]

    def configure_model(self) -> None:
        super().configure_model()
        if not hasattr(self, "value_head"):
            self.value_head = ValueHead(self.policy.hidden_size, self.value_dropout)

    def parameter_groups(self) -> list[dict[str, Any]]:
        head = {"params": list(self.value_head.parameters()), "lr": self.value_lr, "grad_clip": self.value_grad_clip}
        return [*super().parameter_groups(), head]

    def objective(self, logps: ResponseLogps) -> Float[Tensor, "N"]:
        """R = sum_i w_i r_i."""
        return weighted_objective(logps.rewards, self.reward_weights)

    def value(self, logps: ResponseLogps, *, dropout: bool) -> Float[Tensor, "N"]:
        """V of each response's prompt."""
        self.value_head.train(dropout)
        return self.value_head(logps.extras["prompt_hidden"])[logps.prompt_index]

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, Term]:
        objective = self.objective(logps)
        with torch.no_grad():
            weights = advantage_weights(objective, self.value(logps, dropout=False), lam=self.lam)
            if self.global_step < self.value_warmup_steps:  # beside an untrained V they may be inf, and 0 * inf is NaN
                weights = torch.zeros_like(weights)
        auxiliary = auxiliary_loss(logps.logps, logps.lengths, weights, length_normalize=self.length_normalize)
        value = self.value_loss(objective - self.value(logps, dropout=self.training))
        return super().terms(batch, logps, statistics) | {
            "auxiliary": Term(auxiliary, "responses", scale=self.gamma),
            "value": Term(value, "responses", scale=self.value_coefficient),
        }

    def track(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        super().track(stage, batch, logps)
        objective, value = self.objective(logps), self.value(logps, dropout=False)
        weights = advantage_weights(objective, value, lam=self.lam)
        preferred = batch.preferred
        self.means(stage).update(
            **{"objective/chosen": objective[preferred], "objective/rejected": objective[~preferred]}
        )
        (self.train_weights if stage == "train" else self.val_weights).update(weights, objective, value)
        if weights.max() > 20 and self.global_step >= self.value_warmup_steps and not self._warned:
            self._warned = True
            warnings.warn(
                f"an advantage weight reached {weights.max():.0f}: few responses own the auxiliary term; "
                "let V learn longer (value_warmup_steps, value_lr) or lower lam"
            )

    def collect(self, stage: Stage) -> dict[str, Tensor]:
        metric = self.train_weights if stage == "train" else self.val_weights
        weights = metric.compute()
        metric.reset()
        return super().collect(stage) | weights


class UPO(AuxiliaryRewards, KTO):
    """The paper's main method: KTO for the preference, advantage-weighted likelihood for the objectives."""


class UPODPO(AuxiliaryRewards, DPO):
    """The same with DPO as the preference loss."""
