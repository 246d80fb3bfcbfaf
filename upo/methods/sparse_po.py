"""SparsePO and MaPO (Christopoulou, Cardenas et al., 2024), https://arxiv.org/abs/2410.05102.

Differs from TDPO1: the log-ratio and the divergence of each token are multiplied by masks computed from the reference's
hidden states. `SparsePO` learns the masks: a ReLU of a linear map of each layer's state, averaged over the layers, so
that uninformative tokens can get 0. `MaPO` computes them from standardised activations, without parameters.
Partly verified: two kinds of masks, common or separate ones for log-ratio and divergence, TDPO's reward and divergence.
From knowledge: the formula of the loss. Ours: the linear maps start at masks of 1, which is TDPO1; MaPO's sigmoid, and
that activations are standardised per response and layer. The reference must be a model; it gets no gradient.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from upo.data.batch import Batch
from upo.methods.common.base import Stage
from upo.methods.common.families import PairwiseMethod
from upo.methods.common.heads import SideHead
from upo.methods.common.needs import Needs
from upo.models.logps import ResponseLogps


def sparse_po_loss(
    chosen_reward: Float[Tensor, "pairs"],
    rejected_reward: Float[Tensor, "pairs"],
    chosen_kl: Float[Tensor, "pairs"],
    rejected_kl: Float[Tensor, "pairs"],
    *,
    beta: float,
) -> Float[Tensor, "pairs"]:
    """-log sigmoid(U - V) of masked sums; one value per pair, unreduced.

    U = beta (sum_t m_u log(policy / reference) of the chosen response - that of the rejected one),
    V = beta (sum_t m_d KL(reference || policy) of the rejected response - that of the chosen one).

    Args:
        chosen_reward: the sum in U of the chosen response, in nats; `rejected_reward` likewise.
        chosen_kl: the sum in V of the chosen response, in nats; `rejected_kl` likewise.
    """
    return -logsigmoid(beta * (chosen_reward - rejected_reward) - beta * (rejected_kl - chosen_kl))


def activation_masks(layers: Float[Tensor, "tokens L D"], row: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """Sigmoid of each layer's mean activation, standardised over the response; averaged over the layers; in (0, 1).

    Args:
        layers: hidden states of each token after every layer.
        row: index of the response that each token belongs to.
    """
    activations = layers.float().mean(-1)  # [tokens, L]
    _, segment = row.unique(return_inverse=True)
    zeros = activations.new_zeros(int(segment.max()) + 1, activations.shape[1])
    counts = torch.bincount(segment)[:, None]
    means = zeros.index_add(0, segment, activations) / counts
    centred = activations - means[segment]
    deviations = (zeros.index_add(0, segment, centred.square()) / counts).sqrt()
    return torch.sigmoid(centred / (deviations[segment] + 1e-6)).mean(-1)  # 1/2 for a response of one token


class LearnedMasks(nn.Module):
    """`count` masks, each the mean over the layers l of ReLU(w_l . h_l + b_l): 0 or more, 1 at the start."""

    def __init__(self, layers: int, width: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, layers, width))
        self.bias = nn.Parameter(torch.ones(count, layers))

    def forward(self, layers: Float[Tensor, "tokens L D"]) -> Float[Tensor, "count tokens"]:
        return (torch.einsum("tld,cld->ctl", layers.float(), self.weight) + self.bias[:, None]).relu().mean(-1)


class MaPO(PairwiseMethod):
    """TDPO with masks from the reference's activations."""

    reward_is_log_odds = True
    needs = Needs(
        policy={"token_logps", "kl"}, reference={"token_logps", "layers"}, reward={"token_logps", "kl", "layers"}
    )
    metric_names: ClassVar = (*PairwiseMethod.metric_names, "kl/chosen", "kl/rejected", "masks/mean", "masks/density")
    initial_loss = 0.693147

    def __init__(self, *args: Any, beta: PositiveFloat = 0.1, **kwargs: Any):
        """
        Args:
            beta: scale of rewards and divergences, in 1/nats (paper: 0.1, among other values).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta

    def masks(self, logps: ResponseLogps) -> tuple[Tensor, Tensor]:
        """Masks of the log-ratios and of the divergences, one value per response token each."""
        assert logps.response_index is not None
        mask = activation_masks(logps.reference_outputs["layers"], logps.response_index)
        return mask, mask

    def masked(self, logps: ResponseLogps) -> tuple[Tensor, Tensor]:
        """Masked sums of log-ratios and of divergences over each response [N], in nats."""
        reward_mask, kl_mask = self.masks(logps)
        logratio = logps.outputs["token_logps"] - logps.reference_outputs["token_logps"]
        return logps.sums(reward_mask * logratio), logps.sums(kl_mask * logps.outputs["kl"])

    def loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        (u_w, k_w), (u_l, k_l) = self.masked(chosen), self.masked(rejected)
        return sparse_po_loss(u_w, u_l, k_w, k_l, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * sum(self.masked(logps))

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        super().update_metrics(stage, batch, logps)
        kl, masks = logps.sums(logps.outputs["kl"]), torch.cat(self.masks(logps))
        means = {"kl/chosen": kl[0::2], "kl/rejected": kl[1::2], "masks/mean": masks}
        self.means(stage).update(**means, **{"masks/density": (masks > 0).float()})


class SparsePO(MaPO):
    """TDPO with masks that are learned from the reference's hidden states."""

    mask_head: LearnedMasks

    def __init__(
        self,
        *args: Any,
        common_mask: bool = True,
        mask_lr: PositiveFloat = 1e-4,
        mask_weight_decay: NonNegativeFloat = 0.01,
        **kwargs: Any,
    ):
        """
        Args:
            common_mask: whether log-ratios and divergences share one mask (ours: yes; the paper tries both).
            mask_lr: learning rate of the linear maps (ours: 0.0001; at the policy's they would hardly move).
            mask_weight_decay: weight decay of the linear maps, where the optimizer has one; larger values give sparser
                masks (ours: 0.01).
        """
        super().__init__(*args, **kwargs)
        self.common_mask = common_mask
        self.mask_lr, self.mask_weight_decay = float(mask_lr), float(mask_weight_decay)

    def heads(self) -> dict[str, SideHead]:
        def make() -> nn.Module:
            model = (self.reference and self.reference.load_model()) or self.policy  # without one, for its shapes
            config = model.model_config.get_text_config()
            return LearnedMasks(config.num_hidden_layers, config.hidden_size, 1 if self.common_mask else 2)

        return {"mask_head": SideHead(make, self.mask_lr, {"weight_decay": self.mask_weight_decay})}

    def masks(self, logps: ResponseLogps) -> tuple[Tensor, Tensor]:
        masks = self.mask_head(logps.reference_outputs["layers"])
        return masks[0], masks[-1]
