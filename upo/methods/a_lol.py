"""A-LOL, Advantage-Leftover Lunch (Baheti et al., 2024), https://arxiv.org/abs/2305.14718.

Offline policy gradient with the whole response as one action, trained only on responses of positive advantage
A = r - V(x). The reward r is the label plus the weighted auxiliary rewards, as in the UPO paper's baseline. V is fitted
before training and then frozen (`methods/common/fitted_value.py`); responses with A <= 0 are dropped. With
`data.sampler: upo.data.priority.PrioritySampler` the others are drawn in proportion to A, in addition to their weight
in the loss, as in the official code; without it all are drawn equally often.

    ALOL          - A clip(pi / ref, 1 - c, 1 + c) log pi           the ratio of whole responses
    ALOLSequence  - A sum_t clip(pi_t / ref_t, 1 - c, 1 + c) log pi_t
    ALOLRefFree   - A log pi
    ALOLKL        - A log pi + beta (log pi - log ref)

Ratios and advantages carry no gradient. Deviations: V is a head on the policy's hidden state at the end of the prompt
and is fitted to the rewards of the training data; the authors fit attention pooling to rewards of samples from the
reference. With few prompts such a head may memorise single responses, so keep `value_warmup_steps` small.
Where A < beta, ALOLKL lowers a response's likelihood: its second term is a mean over the data, not over samples of the
policy, and therefore no KL divergence.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat
from torch import Tensor

from upo.methods.common.fitted_value import FittedValue
from upo.methods.common.needs import SUMS, Needs
from upo.models.logps import ResponseLogps


def clipped_ratio(logratio: Float[Tensor, "_"], *, clip: float) -> Float[Tensor, "_"]:
    """clip(pi / ref, 1 - c, 1 + c), without gradient; the logarithm is clipped, because exp of it could overflow."""
    low = math.log1p(-clip) if clip < 1 else -math.inf
    return torch.exp(logratio.detach().clamp(low, math.log1p(clip)))


def a_lol_loss(
    logps: Float[Tensor, "N"], logratio: Float[Tensor, "N"], advantage: Float[Tensor, "N"], *, clip: float
) -> Float[Tensor, "N"]:
    """-sg[A clip(pi / ref, 1 - c, 1 + c)] log pi of each response, unreduced."""
    return -advantage.detach() * clipped_ratio(logratio, clip=clip) * logps


def a_lol_sequence_loss(
    token_logps: Float[Tensor, "tokens"],
    token_logratio: Float[Tensor, "tokens"],
    advantage: Float[Tensor, "N"],
    row: Int[Tensor, "tokens"],
    *,
    clip: float,
) -> Float[Tensor, "N"]:
    """-sg[A] sum_t sg[clip(pi_t / ref_t, 1 - c, 1 + c)] log pi_t of each response, unreduced.

    Args:
        row: index in [0, N) of the response that each token belongs to.
    """
    weighted = clipped_ratio(token_logratio, clip=clip) * token_logps
    return -advantage.detach() * weighted.new_zeros(len(advantage)).index_add(0, row, weighted)


def a_lol_ref_free_loss(logps: Float[Tensor, "N"], advantage: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """-sg[A] log pi of each response, unreduced."""
    return -advantage.detach() * logps


def a_lol_kl_loss(
    logps: Float[Tensor, "N"], logratio: Float[Tensor, "N"], advantage: Float[Tensor, "N"], *, beta: float
) -> Float[Tensor, "N"]:
    """-sg[A] log pi + beta log(pi / ref) of each response, unreduced."""
    return -advantage.detach() * logps + beta * logratio


class ALOL(FittedValue):
    """Likelihood of better-than-expected responses, weighted by advantage and clipped ratio."""

    needs = Needs(reference=SUMS, reward=SUMS)

    def __init__(self, *args: Any, clip: ClosedUnitInterval = 0.9, **kwargs: Any):
        """
        Args:
            clip: c, in [0, 1]: the ratio is clipped to [1 - c, 1 + c] (paper: 0.9); 0 is ALOLRefFree.
        """
        super().__init__(*args, **kwargs)
        self.clip = clip

    def loss(self, logps: ResponseLogps, advantage: Tensor) -> Tensor:
        return a_lol_loss(logps.logps, logps.logratio, advantage, clip=self.clip)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return logps.logratio


class ALOLSequence(ALOL):
    """A-LOL with a clipped ratio for each token."""

    needs = ALOL.needs | Needs(policy={"token_logps"}, reference={"token_logps"})

    def loss(self, logps: ResponseLogps, advantage: Tensor) -> Tensor:
        token_logps = logps.outputs["token_logps"]
        token_logratio = token_logps - logps.reference_outputs["token_logps"]
        assert logps.response_index is not None
        return a_lol_sequence_loss(token_logps, token_logratio, advantage, logps.response_index, clip=self.clip)


class ALOLRefFree(FittedValue):
    """A-LOL without a ratio: advantage-weighted likelihood."""

    def loss(self, logps: ResponseLogps, advantage: Tensor) -> Tensor:
        return a_lol_ref_free_loss(logps.logps, advantage)


class ALOLKL(FittedValue):
    """A-LOL with the log-ratio as a penalty instead of a clipped ratio."""

    needs = Needs(reference=SUMS, reward=SUMS)

    def __init__(self, *args: Any, beta: NonNegativeFloat = 0.1, **kwargs: Any):
        """
        Args:
            beta: weight of the log-ratio, in units of reward/nats (paper: about 0.1; official code: 0).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta

    def loss(self, logps: ResponseLogps, advantage: Tensor) -> Tensor:
        return a_lol_kl_loss(logps.logps, logps.logratio, advantage, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return logps.logratio
