"""NCA and InfoNCA, Noise Contrastive Alignment (Chen et al., 2024), https://arxiv.org/abs/2402.05369.

K responses to a prompt have scores, and softmax(scores / temperature) says how much of the target each one gets.
InfoNCA fits it by a softmax over the list (DPO for pairs with hard labels); NCA by one logistic classification per
response, which keeps the chosen likelihood from falling: at its optimum the chosen reward is log 2. NCA's loss changes
when all log-ratios are shifted. Verified in the official code. Deviation: responses with equal best scores share the
target; the official code adds 0.01 to one of them.
"""

from typing import Any

from jaxtyping import Bool, Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.functional.lists import masked_log_softmax, masked_softmax
from upo.methods.common.families import ListwiseMethod, PairwiseMethod
from upo.models.logps import ResponseLogps


def nca_pair_loss(
    chosen_logratio: Float[Tensor, "pairs"], rejected_logratio: Float[Tensor, "pairs"], *, beta: float
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(R_w) - log sigmoid(-R_w) / 2 - log sigmoid(-R_l) / 2, R = beta r; one value per pair, unreduced."""
    chosen, rejected = beta * chosen_logratio, beta * rejected_logratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def nca_loss(
    rewards: Float[Tensor, "B K"],
    scores: Float[Tensor, "B K"],
    mask: Bool[Tensor, "B K"],
    *,
    temperature: float,
) -> Float[Tensor, "B"]:
    """-sum_k q_k log sigmoid(R_k) - mean_k log sigmoid(-R_k), q = softmax(scores / temperature).

    One value per prompt, unreduced; 2 log 2 where policy and reference agree.
    """
    better = masked_softmax(scores / temperature, mask) * logsigmoid(rewards)
    noise = logsigmoid(-rewards).masked_fill(~mask, 0.0) / mask.sum(1, keepdim=True)
    return -(better + noise).sum(1)


def info_nca_loss(
    rewards: Float[Tensor, "B K"],
    scores: Float[Tensor, "B K"],
    mask: Bool[Tensor, "B K"],
    *,
    temperature: float,
) -> Float[Tensor, "B"]:
    """-sum_k q_k log softmax(R)_k, q = softmax(scores / temperature).

    One value per prompt, unreduced; log K where policy and reference agree.
    """
    return -(masked_softmax(scores / temperature, mask) * masked_log_softmax(rewards, mask)).sum(1)


class NCA(PairwiseMethod):
    """Noise Contrastive Alignment on pairs."""

    initial_loss = 1.386294

    def __init__(self, *args: Any, beta: PositiveFloat = 0.01, **kwargs: Any):
        """
        Args:
            beta: scale of the implicit reward, in 1/nats (paper: 0.01).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        return nca_pair_loss(chosen.logratio, rejected.logratio, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio


class NCAListwise(ListwiseMethod):
    """Noise Contrastive Alignment on scored lists."""

    initial_loss = 1.386294

    def __init__(self, *args: Any, beta: PositiveFloat = 0.01, temperature: PositiveFloat = 1e-3, **kwargs: Any):
        """
        Args:
            beta: scale of the implicit reward, in 1/nats (paper: 0.01).
            temperature: by which the scores are divided, in their unit (official code: 0.001, which gives nearly all of
                the target to the best response); the inverse of the paper's alpha.
        """
        super().__init__(*args, **kwargs)
        self.beta, self.temperature = beta, temperature

    def loss(self, responses: ResponseLogps, scores: Tensor, mask: Tensor) -> Tensor:
        return nca_loss(self.reward(responses), scores, mask, temperature=self.temperature)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio


class InfoNCA(NCAListwise):
    """InfoNCA on scored lists: NCA's softmax form, which fits relative rewards only; DPO for pairs with hard labels."""

    initial_loss = None

    def loss(self, responses: ResponseLogps, scores: Tensor, mask: Tensor) -> Tensor:
        return info_nca_loss(self.reward(responses), scores, mask, temperature=self.temperature)
