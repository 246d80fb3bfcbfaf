"""UPO, Unified Preference Optimization (Badrinath, Agarwal, Xu, TMLR 2025), https://arxiv.org/abs/2405.17956.

A preference loss for what users like, plus advantage-weighted likelihood for the designers' objectives (safety, reading
level, ...): arbitrary rewards R(x, y) = sum_i w_i r_i(x, y), given for every response of the data set.

    L = L_pref + gamma L_aux + c_V L_V
    L_aux = - exp(lambda (R - V)) log policy(y|x) / |y|      over all responses, chosen and rejected alike
    L_V   = expectile_tau(R - V)                             fits a value head V(x) on detached hidden states

Differs from its parents by the two added terms. Where the paper leaves something open, the default is ours: lambda's
reading, tau, where V is read (the last prompt token: V must not see y), learning rate and clipping of the value head,
and that large weights are left as they are. V in the exponent is computed without dropout.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from upo.data.batch import Batch, Step
from upo.functional.value_losses import Expectile, ValueLoss
from upo.methods.common.base import LossTerm, Method, Stage
from upo.methods.common.heads import SideHead
from upo.methods.common.needs import Needs
from upo.methods.common.value_head import Seed, ValueHead, ValueHeads
from upo.methods.dpo import DPO
from upo.methods.ipo import IPO
from upo.methods.kto import KTO
from upo.metrics.weights import AdvantageWeights
from upo.models.logps import ResponseLogps
from upo.runtime.collectives import sum_over_ranks

STATES = {"last": "prompt_hidden", "mean": "prompt_mean"}
"""The policy's output that V is read from, by `value_at`."""

REWARD_WEIGHTS = {"readability": 0.05, "safety": 0.95}
"""The paper's weights w_i."""

LARGEST = 80.0  # of an exponent lambda (R - V): exp(88.8) is infinite in float32


def auxiliary_loss(
    logps: Float[Tensor, "N"],
    lengths: Int[Tensor, "N"],
    weights: Float[Tensor, "N"],
    *,
    length_normalize: bool = True,
) -> Float[Tensor, "N"]:
    """Equation 10: -sg[weights] log policy(y|x) / |y|; one value per response, unreduced."""
    return -weights.detach() * (logps / lengths if length_normalize else logps)


def log_weights(
    objective: Float[Tensor, "N"], value: Float[Tensor, "N"], *, lam: float, clip: float | None = None
) -> Float[Tensor, "N"]:
    """min(lambda (R - V), log clip) of each response; null does not clip."""
    exponent = lam * (objective - value)
    return exponent if clip is None else exponent.clamp(max=math.log(clip))


def advantage_weights(
    objective: Float[Tensor, "N"], value: Float[Tensor, "N"], *, lam: float, clip: float | None = None
) -> Float[Tensor, "N"]:
    """min(exp(lambda (R - V)), clip), not normalised; null does not clip."""
    return log_weights(objective, value, lam=lam, clip=clip).clamp(max=LARGEST).exp()


class AuxiliaryRewards(Method):
    """Adds auxiliary rewards to any preference method: `class UPO(AuxiliaryRewards, KTO)`."""

    value_head: ValueHead | ValueHeads
    couples_weights: ClassVar[bool] = False
    """Whether a weight always depends on the other responses of the step, even without `normalize_weights`."""

    def __init__(
        self,
        *args: Any,
        reward_weights: dict[str, float] | None = None,
        gamma: NonNegativeFloat = 0.5,
        lam: NonNegativeFloat = 5.0,
        length_normalize: bool = True,
        weight_clip: PositiveFloat | None = None,
        normalize_weights: bool = False,
        value_loss: ValueLoss = Expectile(),
        value_coefficient: NonNegativeFloat = 0.1,
        value_warmup_steps: NonNegativeInt = 100,
        value_at: Literal["last", "mean"] = "last",
        value_per_reward: bool = False,
        value_lr: PositiveFloat = 1e-3,
        value_grad_clip: PositiveFloat = 0.1,
        value_dropout: ClosedUnitInterval = 0.1,
        **kwargs: Any,
    ):
        """
        Args:
            reward_weights: w_i by name of a reward in `data.rewards`; null is the paper's {readability: 0.05,
                safety: 0.95}.
            gamma: weight of the auxiliary term (paper: 0.5).
            lam: lambda in exp(lambda (R - V)), per unit of reward; 0 is unweighted likelihood of all responses (ours:
                5, the likeliest reading of the paper; other readings are 2 and 0.5).
            length_normalize: divide log policy(y|x) by |y| in the auxiliary term (paper: yes). The optimum of that term
                alone is data(y) exp(lambda R) / |y| with it, data(y) exp(lambda R) without it.
            weight_clip: largest weight, before any normalisation; null leaves weights as they are (paper).
            normalize_weights: divide weights by their mean over the GLOBAL step, an estimate of the Z(x) that the paper
                drops (ours: no). Costs one more forward pass of the policy; logged weights are not divided.
            value_loss: the loss that fits V: Expectile (paper; tau is ours: 0.7) or Linex with the same lam.
            value_coefficient: c_V, weight of the value loss (paper: 0.1).
            value_warmup_steps: optimizer steps at the start without the auxiliary term, while V is fitted (paper: 100).
            value_at: whether V reads the state of the prompt's last token or the mean state of its tokens (ours: last).
            value_per_reward: one head V_i per reward and V = sum_i w_i V_i, instead of one for R (ours: no). L_V is
                the mean of their losses, V with Expectile a sum of expectiles; with Linex the mean weight is not 1.
            value_lr: learning rate of the value head (ours: 0.001; at the policy's a fresh head would hardly move).
            value_grad_clip: gradient norm to which the value head is clipped by itself (HALOs: 0.1).
            value_dropout: dropout of the value head in L_V, in [0, 1] (paper: 0.1); the same in any split.
        """
        self.reward_weights = dict(reward_weights or REWARD_WEIGHTS)
        self.value_state = STATES[value_at]
        self.needs |= Needs(policy={self.value_state}, rewards=self.reward_weights)
        super().__init__(*args, **kwargs)
        self.gamma, self.lam, self.length_normalize = gamma, lam, length_normalize
        self.weight_clip, self.normalize_weights = weight_clip, normalize_weights
        self.value_loss, self.value_coefficient = value_loss.checked(lam), value_coefficient
        self.value_warmup_steps, self.value_dropout = value_warmup_steps, value_dropout
        self.turning_points = {value_warmup_steps: "warm-up ends"} if value_warmup_steps else {}
        self.value_lr, self.value_grad_clip = float(value_lr), float(value_grad_clip)
        self.train_weights, self.val_weights = AdvantageWeights(), AdvantageWeights()
        self.value_per_reward, self._warned = value_per_reward, False

    @property
    def logged_names(self) -> list[str]:
        losses = ("loss/preference", "loss/auxiliary", "loss/value")
        return [*super().logged_names, *losses, "objective/chosen", "objective/rejected"]

    @property
    def warming_up(self) -> bool:
        return self.global_step < self.value_warmup_steps

    def heads(self) -> dict[str, SideHead]:
        def make() -> nn.Module:
            shape = (self.policy.hidden_size, self.value_dropout)
            return ValueHeads(*shape, len(self.rewards)) if self.value_per_reward else ValueHead(*shape)

        return {"value_head": SideHead(make, self.value_lr, {"grad_clip": self.value_grad_clip})}

    # ---- R, V and the weights --------------------------------------------------------------------------------

    def objective(self, logps: ResponseLogps) -> Float[Tensor, "N"]:
        """R = sum_i w_i r_i."""
        return logps.objective(self.reward_weights)

    def targets(self, logps: ResponseLogps) -> tuple[Float[Tensor, "N H"], Float[Tensor, "H"]]:
        """The target of each of the H heads and its weight in V: R with weight 1, or each r_i with w_i."""
        if not self.value_per_reward:
            column = self.objective(logps)[:, None]
            return column, column.new_ones(1)
        rewards = logps.annotated
        return rewards, rewards.new_tensor(list(self.reward_weights.values()))

    def values(self, logps: ResponseLogps, seeds: Sequence[Seed] | None = None) -> Float[Tensor, "N H"]:
        """Each head's value of each response's prompt; with `seeds`, one per prompt, under dropout."""
        return self.value_head(logps.outputs[self.value_state], seeds)[logps.prompt_index].view(len(logps.logps), -1)

    def value(self, logps: ResponseLogps) -> Float[Tensor, "N"]:
        """V of each response's prompt."""
        return (self.values(logps) * self.targets(logps)[1]).sum(1)

    def log_weights(self, logps: ResponseLogps) -> Float[Tensor, "N"]:
        """lambda (R - V) of each response, clipped."""
        value = self.value(logps)
        return log_weights(self.objective(logps), value, lam=self.lam, clip=self.weight_clip)

    def couple(self, every: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Log weights of all n responses of the GLOBAL step, with `normalize_weights` brought to a mean weight of 1."""
        return every - every.logsumexp(0) + math.log(len(every)) if self.normalize_weights else every

    @torch.no_grad()
    def statistics(self, step: Step) -> dict[str, Tensor]:
        """Log weights of the GLOBAL step, indexed by `Batch.global_index`, where they depend on one another."""
        statistics = super().statistics(step)
        if self.warming_up or not (self.normalize_weights or self.couples_weights):
            return statistics
        log_weights = torch.zeros(step.counts["responses"], dtype=torch.float64, device=self.device)
        for batch in step.micro_batches:
            assert batch.global_index is not None, "StepData numbers the responses"
            logps = self.response_logps(batch.responses, Needs(policy={self.value_state}))
            if not batch.dummy:
                log_weights[batch.global_index] = self.log_weights(logps).double()
        return statistics | {"log_weights": self.couple(sum_over_ranks(log_weights))}

    # ---- the loss --------------------------------------------------------------------------------------------

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        return super().terms(batch, logps, statistics) | self.auxiliary_terms(batch, logps, statistics)

    def auxiliary_terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        """gamma L_aux and c_V L_V."""
        target, weight = self.targets(logps)
        with torch.no_grad():
            if self.warming_up:  # with an untrained V they may be inf, and 0 * inf is NaN
                weights = target.new_zeros(len(target))
            elif "log_weights" in statistics:
                weights = statistics["log_weights"][batch.global_index].exp().to(target.dtype)
            else:
                weights = self.log_weights(logps).clamp(max=LARGEST).exp()
        auxiliary = auxiliary_loss(logps.logps, logps.lengths, weights, length_normalize=self.length_normalize)
        prompts = batch.global_prompt_index if self.training and self.value_dropout else []
        seeds = [(self.data_seed, self.global_step, prompt) for prompt in prompts] or None
        # The value loss is asymmetric; for a reward of negative weight its better side is below V_i.
        errors = weight.sign() * (target - self.values(logps, seeds))
        return {
            "auxiliary": LossTerm(auxiliary, "responses", weight=self.gamma),
            "value": LossTerm(self.value_loss(errors).mean(1), "responses", weight=self.value_coefficient),
        }

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        super().update_metrics(stage, batch, logps)
        objective, value, preferred = self.objective(logps), self.value(logps), batch.preferred
        weights = advantage_weights(objective, value, lam=self.lam, clip=self.weight_clip)
        sides = {"objective/chosen": objective[preferred], "objective/rejected": objective[~preferred]}
        self.means(stage).update(**sides)
        (self.train_weights if stage == "train" else self.val_weights).update(weights, objective, value)
        if weights.max() > 20 and not self.warming_up and not self._warned:
            self._warned = True
            warnings.warn(
                f"an advantage weight exp(lam (R - V)) reached {weights.max():.3g}: few responses make up this term; "
                "normalise R (reward Mixture), let V learn longer (value_warmup_steps), lower lam, or set weight_clip"
            )

    def compute_metrics(self, stage: Stage) -> dict[str, Tensor]:
        metric = self.train_weights if stage == "train" else self.val_weights
        weights = metric.compute()
        metric.reset()
        return super().compute_metrics(stage) | weights


class UPO(AuxiliaryRewards, KTO):
    """The UPO paper's main method: KTO, plus advantage-weighted likelihood for the auxiliary rewards."""


class UPODPO(AuxiliaryRewards, DPO):
    """UPO with DPO as the preference loss."""


class UPOIPO(AuxiliaryRewards, IPO):
    """UPO with IPO as the preference loss."""
