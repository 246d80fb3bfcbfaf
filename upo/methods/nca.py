"""NCA and InfoNCA, Noise Contrastive Alignment (Chen et al., 2024), https://arxiv.org/abs/2402.05369.

The policy learns to tell, among K responses to a prompt, by how much each is better: InfoNCA by a softmax over the
list (DPO for pairs with hard labels), NCA by one logistic classification a response, which keeps the chosen likelihood
from falling: its optimum there is a finite reward of log 2. NCA is not invariant to a shift of all log-ratios.
Deviation: equal best scores share the target; the authors' code adds 0.01 to one of them.
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
    """-sum_k q_k log softmax(R)_k, q = softmax(scores / temperature); log K where policy and reference agree."""
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
            temperature: divides the scores, in their unit (authors' code: 0.001, which all but picks the best response;
                the paper's alpha is its inverse).
        """
        super().__init__(*args, **kwargs)
        self.beta, self.temperature = beta, temperature

    def loss(self, responses: ResponseLogps, scores: Tensor, mask: Tensor) -> Tensor:
        return nca_loss(self.reward(responses), scores, mask, temperature=self.temperature)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio


class InfoNCA(NCAListwise):
    """NCA's softmax form on scored lists: relative rewards only; for pairs with hard labels it is DPO."""

    initial_loss = None

    def loss(self, responses: ResponseLogps, scores: Tensor, mask: Tensor) -> Tensor:
        return info_nca_loss(self.reward(responses), scores, mask, temperature=self.temperature)
