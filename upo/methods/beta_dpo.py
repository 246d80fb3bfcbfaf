"""beta-DPO, DPO with dynamic beta (Wu et al., NeurIPS 2024), https://arxiv.org/abs/2407.08639.

Differs from DPO: beta of a step follows the mean gap M_i = r_w - r_l of its pairs, and pairs with unusual gaps are
dropped at random. With m the momentum, over the N pairs of the GLOBAL step:

    M0 <- m M0 + (1 - m) mean(M)        S0 <- m S0 + (1 - m) std(M)        both from 0, updated before use
    keep (1 - rho) N pairs, drawn without replacement with weights exp(-(M_i - M0)^2 / (2 S0^2))
    beta = max(0.001, beta_0 (1 + a (mean of kept M - M0)))                 L = mean over kept of -log sigmoid(beta M_i)

Verified in the official code. There M is a log-ratio without beta, unlike in the paper; it is so here as well, which
makes 1/nats the unit of `a`. Deviations: pairs are drawn once for the whole step, from a generator of its own, and do
not depend on how the step is split (in the official code each rank draws by itself); no pair is dropped while S0 is
below 0.001 nats (0/0 at the start); validation computes DPO's loss at beta_0 and leaves the averages unchanged.
"""

import math
from typing import Any

import torch
from attrs import evolve
from jaxtyping import Bool, Float
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from upo.data.batch import Batch, Step
from upo.methods.common.base import LossTerm, Stage
from upo.methods.common.families import PREFERENCE_METRICS, PairwiseMethod
from upo.methods.common.ranges import Share
from upo.methods.common.stepwise import step_logps
from upo.methods.dpo import dpo_loss
from upo.models.logps import ResponseLogps
from upo.runtime.collectives import gather_rows
from upo.runtime.seeding import seed_at


def draw_pairs(
    gaps: Float[Tensor, "pairs"], mean: float, spread: float, *, kept: int, generator: torch.Generator
) -> Bool[Tensor, "pairs"]:
    """Mask of the pairs to keep, drawn without replacement with weights exp(-(M - M0)^2 / (2 S0^2)).

    The draw takes the largest values of log-weight + Gumbel noise, which cannot underflow. Noise is assigned to the
    sorted gaps, so that the result does not depend on the order of the pairs.

    Args:
        gaps: M of each pair, in nats.
        mean: M0, in nats.
        spread: S0 > 0, in nats.
        kept: how many pairs to keep.
    """
    order = gaps.argsort()
    uniform = torch.rand(len(gaps), generator=generator, dtype=torch.float64).to(gaps.device)
    keys = -((gaps[order] - mean) ** 2) / (2 * spread**2) - torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    mask = torch.zeros(len(gaps), dtype=torch.bool, device=gaps.device)
    mask[order[keys.topk(kept).indices]] = True
    return mask


def dynamic_beta(kept_mean: float, mean: float, *, beta: float, a: float) -> float:
    """max(0.001, beta_0 (1 + a (mean of kept M - M0))), in 1/nats."""
    return max(1e-3, beta * (1 + a * (kept_mean - mean)))


class BetaDPO(PairwiseMethod):
    """DPO with dynamic beta and a filter of unusual pairs."""

    initial_loss = 0.693147
    logged_statistics = ("beta", "gaps/mean", "gaps/spread")
    metric_names = (*PREFERENCE_METRICS, *logged_statistics)
    gap_mean: Tensor
    """M0, in nats."""
    gap_spread: Tensor
    """S0, in nats."""

    def __init__(
        self,
        *args: Any,
        beta: PositiveFloat = 0.1,
        a: NonNegativeFloat = 0.6,
        rho: Share = 0.2,  # type: ignore[assignment]
        momentum: Share = 0.9,  # type: ignore[assignment]
        filter_seed: NonNegativeInt = 0,
        **kwargs: Any,
    ):
        """
        Args:
            beta: beta_0, the beta of a step whose mean gap is M0, in 1/nats (paper: 0.1).
            a: how much beta grows with the mean gap, in 1/nats; 0 keeps beta fixed (paper: 0.6).
            rho: share of the pairs of a step that is dropped, in [0, 1) (paper: 0.2).
            momentum: m of the moving averages, in [0, 1) (official code: 0.9).
            filter_seed: seed of the random drops, combined with the number of the step.
        """
        super().__init__(*args, **kwargs)
        self.beta, self.a = beta, a
        self.rho, self.momentum = rho, momentum
        self.filter_seed = filter_seed
        self.register_buffer("gap_mean", torch.zeros(()))
        self.register_buffer("gap_spread", torch.zeros(()))

    def statistics(self, step: Step) -> dict[str, Tensor]:
        """beta, the moving averages, and the weight of each pair of this rank: 0 where it is dropped."""
        logps = step_logps(self, step)
        gaps, rows_of_rank = gather_rows((logps.logratio[0::2] - logps.logratio[1::2]).double())
        weights, beta = torch.ones_like(gaps), self.beta
        if self.training:
            m, std = self.momentum, gaps.std(correction=min(1, len(gaps) - 1))
            self.gap_mean.mul_(m).add_((1 - m) * gaps.mean())
            self.gap_spread.mul_(m).add_((1 - m) * std)
            mean, spread = self.gap_mean.item(), self.gap_spread.item()
            if spread > 1e-3 and self.rho > 0:
                generator = torch.Generator().manual_seed(seed_at(self.filter_seed, self.global_step))
                kept = max(1, math.floor((1 - self.rho) * len(gaps)))
                mask = draw_pairs(gaps, mean, spread, kept=kept, generator=generator)
                weights = mask * (len(gaps) / kept)
            beta = dynamic_beta((weights * gaps).mean().item(), mean, beta=self.beta, a=self.a)
        logged = {"beta": gaps.new_tensor(beta), "gaps/mean": self.gap_mean, "gaps/spread": self.gap_spread}
        weights = weights[rows_of_rank].to(logps.logps.dtype)
        return logged | {"weights": weights, "reference_logps": logps.logps - logps.logratio}

    def loss_of(self, batch: Batch, step: Step, statistics: dict[str, Tensor], stage: Stage) -> Tensor:
        """The loss with the statistics of this micro-batch's pairs; its reference log-probs are not computed again."""
        if batch.dummy:
            statistics = statistics | {"weights": torch.zeros(batch.counts["prompts"], device=self.device)}
        else:
            rows = step.rows_of(batch)
            statistics = statistics | {"weights": statistics["weights"][rows.start // 2 : rows.stop // 2]}
            reference_logps = statistics["reference_logps"][rows]
            batch = evolve(batch, responses=evolve(batch.responses, reference_logps=reference_logps))
        return super().loss_of(batch, step, statistics, stage)

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        losses = dpo_loss(logps[0::2].logratio, logps[1::2].logratio, beta=statistics["beta"].item())
        return {"preference": LossTerm(statistics["weights"] * losses, "prompts")}

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
