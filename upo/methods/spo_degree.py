"""SPO with a self-supervised preference degree (Li et al., 2024), https://arxiv.org/abs/2409.17791.

In addition to the alignment loss, the model learns to tell how much of a response's key content is missing. Chosen and
rejected responses are copied with more and more of their key phrases deleted, and a small head on the last hidden state
classifies how many are gone: degree 0 (intact) to K (all of them). The head is trained with the policy and never
exported.

    L = L_align + gamma (CE_w + CE_l)

Verified: nothing but the idea, in the abstract. From knowledge or ours: K, gamma, the extractor of key phrases (here
RAKE), that both responses are degraded, and that a CE is the mean over a response and its copies. L_align is DPO's.
"""

from typing import Any

import torch
from attrs import evolve
from jaxtyping import Float, Int
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from upo.data.batch import Batch
from upo.data.example import Example, Response
from upo.data.keyphrases import without_key_phrases
from upo.data.units import Draft
from upo.data.views import PairedView, pairs_of
from upo.methods.common.base import LossTerm, Stage
from upo.methods.common.heads import SideHead
from upo.methods.common.needs import Needs
from upo.methods.dpo import DPO
from upo.models.logps import ResponseLogps


def degree_loss(logits: Float[Tensor, "N degrees"], degrees: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Cross-entropy of the degree, one value per response or copy, in nats, unreduced."""
    return nn.functional.cross_entropy(logits, degrees, reduction="none")


LEVELS = 3
"""K: copy k has lost the share k / K of its key phrases, the most important ones first."""


class DegreeView(PairedView):
    """Pairs, each followed by its degraded copies.

    Columns: `degrees`, 0 to K; `originals`, 1 for the rows of the pair itself (chosen, rejected) and 0 for copies;
    `shares`, 1 / (number of rows of a response, copies included), so that the sum of shares * CE is CE_w + CE_l.
    """

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        return [self._draft(pair) for pair in pairs_of(example, max_pairs)]

    def _draft(self, pair: Example) -> Draft:
        rows = [(response, 0, index) for index, response in enumerate(pair.responses)] + copies(pair)
        owners = [owner for _, _, owner in rows]
        return Draft(
            pair.with_responses(tuple(response for response, _, _ in rows)),
            columns={
                "degrees": [degree for _, degree, _ in rows],
                "originals": [degree == 0 for _, degree, _ in rows],
                "preferred": [degree == 0 and owner == 0 for _, degree, owner in rows],
                "shares": [1 / owners.count(owner) for owner in owners],
            },
        )


def copies(pair: Example) -> list[tuple[Response, int, int]]:
    """Degraded copies of both responses: the copy, its degree, and the index of its response in the pair.

    Empty copies are left out; of copies with the same text the one of the highest degree is kept.
    """
    degraded = []
    for index, response in enumerate(pair.responses):
        seen = {"", response.text.strip()}
        for level in range(LEVELS, 0, -1):
            text = without_key_phrases(response.text, level / LEVELS)
            if text not in seen:
                degraded.append((Response(text), level, index))
            seen.add(text)
    return degraded


class SPODegree(DPO):
    """DPO with a self-supervised preference degree."""

    degree_head: nn.Linear

    reward_is_log_odds = False
    view = DegreeView()
    needs = DPO.needs | Needs(policy={"hidden"})
    initial_loss = None
    metric_names = (*DPO.metric_names, "loss/preference", "loss/degree", "degree/accuracies")

    def __init__(self, *args: Any, gamma: NonNegativeFloat = 0.1, head_lr: PositiveFloat = 1e-3, **kwargs: Any):
        """
        Args:
            gamma: weight of the classification, no unit; 0 is DPO (ours: 0.1; the paper's value is not known to us).
            head_lr: learning rate of the head (ours: 0.001; at the policy's a fresh head would hardly move).
        """
        super().__init__(*args, **kwargs)
        self.gamma, self.head_lr = gamma, float(head_lr)

    def heads(self) -> dict[str, SideHead]:
        return {"degree_head": SideHead(lambda: nn.Linear(self.policy.hidden_size, LEVELS + 1), self.head_lr)}

    def degree_logits(self, logps: ResponseLogps) -> Float[Tensor, "N degrees"]:
        """Logits of the degree of each response or copy, from the state that predicts its last token."""
        last_hidden = logps.outputs["hidden"][logps.lengths.cumsum(0) - 1]
        with torch.autocast(last_hidden.device.type, enabled=False):
            return self.degree_head(last_hidden.to(self.degree_head.weight.dtype))

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        losses = batch["shares"] * degree_loss(self.degree_logits(logps), batch["degrees"])
        pair_losses = losses.new_zeros(len(batch.responses.prompt_end)).index_add(0, logps.prompt_index, losses)
        preference = super().terms(batch, logps[batch["originals"]], statistics)
        return preference | {"degree": LossTerm(pair_losses, "prompts", weight=self.gamma)}

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        pairs = batch["originals"]
        super().update_metrics(stage, evolve(batch, columns={"preferred": batch.preferred[pairs]}), logps[pairs])
        correct = self.degree_logits(logps).argmax(1) == batch["degrees"]
        self.means(stage).update(**{"degree/accuracies": correct.float()})
