"""SparsePO and MaPO (Christopoulou, Cardenas et al., 2024), https://arxiv.org/abs/2410.05102.

Differs from TDPO1: each token's log-ratio and divergence are weighted by masks that come from the reference's hidden
states. `SparsePO` learns them: a ReLU of a linear map of each layer's state, averaged over the layers, so that
uninformative tokens can drop out. `MaPO` reads them off: standardised activations, nothing to learn.
Partly verified: two kinds of masks, common or independent ones, TDPO's reward and divergence. From knowledge: the
formula of the loss. Ours: the linear maps start at masks of 1, which is TDPO1; MaPO's sigmoid and its statistics,
which are those of each response and layer. The reference must be a model; it gets no gradient.
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
    """-log sigmoid(U - V) of masked sums, in nats; one value per pair, unreduced.

    U = beta (sum_t m_u log(policy / reference) of the chosen response - that of the rejected one),
    V = beta (sum_t m_d KL(reference || policy) of the rejected response - that of the chosen one).
    """
    return -logsigmoid(beta * (chosen_reward - rejected_reward) - beta * (rejected_kl - chosen_kl))


def activation_masks(layers: Float[Tensor, "tokens L D"], row: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """sigmoid of the mean activation of each layer, standardised over the response; averaged over the layers."""
    a = layers.float().mean(-1)
    _, of = row.unique(return_inverse=True)
    total = a.new_zeros(int(of.max()) + 1, a.shape[1])
    count = torch.bincount(of)[:, None]
    centred = a - (total.index_add(0, of, a) / count)[of]
    spread = (total.index_add(0, of, centred.square()) / count).sqrt()[of]
    return torch.sigmoid(centred / (spread + 1e-6)).mean(-1)  # a response of one token has no spread: 1/2


class LearnedMasks(nn.Module):
    """mean over the layers of ReLU(w_l . h_l + b_l), for `count` masks; 1 at the start."""

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
            beta: strength of rewards and divergences, in 1/nats (paper: 0.1 and others).
        """
        super().__init__(*args, **kwargs)
        self.beta = beta

    def masks(self, logps: ResponseLogps) -> tuple[Tensor, Tensor]:
        """Of log-ratios and of divergences, by token of the micro-batch."""
        assert logps.response_index is not None
        mask = activation_masks(logps.reference_outputs["layers"], logps.response_index)
        return mask, mask

    def masked(self, logps: ResponseLogps) -> tuple[Tensor, Tensor]:
        """Masked log-ratio and divergence of each response."""
        of_reward, of_kl = self.masks(logps)
        logratio = logps.outputs["token_logps"] - logps.reference_outputs["token_logps"]
        return logps.sums(of_reward * logratio), logps.sums(of_kl * logps.outputs["kl"])

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
            common_mask: one mask for log-ratios and divergences; otherwise one each (the paper tries both).
            mask_lr: learning rate of the linear maps (ours: at the policy's they would hardly move).
            mask_weight_decay: of the linear maps, where the optimizer has it; larger gives sparser masks (ours).
        """
        super().__init__(*args, **kwargs)
        self.common_mask = common_mask
        self.mask_lr, self.mask_weight_decay = float(mask_lr), float(mask_weight_decay)

    def heads(self) -> dict[str, SideHead]:
        def make() -> nn.Module:
            model = (self.reference and self.reference.load_model()) or self.policy  # its shapes, where it is not built
            config = model.model_config.get_text_config()
            return LearnedMasks(config.num_hidden_layers, config.hidden_size, 1 if self.common_mask else 2)

        return {"mask_head": SideHead(make, self.mask_lr, {"weight_decay": self.mask_weight_decay})}

    def masks(self, logps: ResponseLogps) -> tuple[Tensor, Tensor]:
        masks = self.mask_head(logps.reference_outputs["layers"])
        return masks[0], masks[-1]
