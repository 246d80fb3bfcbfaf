"""SPO with a self-supervised preference degree (Li et al., 2024), https://arxiv.org/abs/2409.17791.

Beside the alignment loss the model learns to tell how much of a response's key content is missing: copies of chosen and
rejected responses lose more and more of their key phrases, and a small head on the last hidden state classifies the
degree of loss, 0 (intact) to K (all key phrases gone). The head is trained with the policy and never exported.

    L = L_align + gamma (CE_w + CE_l)

From knowledge (only the abstract could be read): K, gamma, the extractor (here RAKE), that both responses are degraded,
and that a CE is the mean over a response and its copies. L_align is DPO's.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from attrs import frozen
from jaxtyping import Bool, Float, Int
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from upo.data.batch import LayOut, PairedBatch
from upo.data.example import Example, Response
from upo.data.keyphrases import without_key_phrases
from upo.data.layout import Tokens
from upo.methods.common.base import Stage, Term
from upo.methods.common.heads import SideHead
from upo.methods.common.needs import Needs
from upo.methods.dpo import DPO
from upo.models.logps import ResponseLogps


def degree_loss(logits: Float[Tensor, "N degrees"], degrees: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Cross-entropy of the degree of loss, one value a response or copy, unreduced."""
    return nn.functional.cross_entropy(logits, degrees, reduction="none")


@frozen(eq=False)
class DegreeBatch(PairedBatch):
    """B pairs, each followed by its degraded copies."""

    degrees: Int[Tensor, "N"]
    original: Bool[Tensor, "N"]
    """The rows that make the pairs, chosen and rejected by turns."""
    shares: Float[Tensor, "N"]
    """1 / (how many rows a response has, its copies included): sums with them are CE_w + CE_l."""

    levels: ClassVar[int] = 3
    """K: copy k of K has lost the most important k/K of its key phrases."""

    @classmethod
    def views(cls, example: Example, max_pairs: int) -> list[Example]:
        return [p.with_responses((*p.responses, *cls.copies(p))) for p in PairedBatch.views(example, max_pairs)]

    @classmethod
    def copies(cls, pair: Example) -> list[Response]:
        """Degraded copies of both responses that are not empty; of equal ones the one with the highest degree."""
        made = []
        for place, response in enumerate(pair.responses):
            seen = {"", response.text.strip()}
            for level in range(cls.levels, 0, -1):
                text = without_key_phrases(response.text, level / cls.levels)
                if text not in seen:
                    made.append(Response(text, attributes={"degree": level, "copy_of": place}))
                seen.add(text)
        return made

    @classmethod
    def collate(cls, units: Sequence[Tokens], lay_out: LayOut, borrowed: Sequence[Tokens]) -> Self:
        degrees = [int(r.attributes.get("degree", 0)) for u in units for r in u.example.responses]
        original = [k < 2 for u in units for k in range(len(u.responses))]
        shares: list[float] = []
        for unit in units:
            owners = [int(r.attributes.get("copy_of", k)) for k, r in enumerate(unit.example.responses)]
            shares += [1 / owners.count(owner) for owner in owners]
        return cls(lay_out(units), torch.tensor(degrees), torch.tensor(original), torch.tensor(shares))

    @property
    def preferred(self) -> Bool[Tensor, "N"]:
        """Of the rows that make the pairs."""
        return torch.arange(2 * len(self.responses.prompt_end), device=self.degrees.device) % 2 == 0


class SPODegree(DPO):
    """DPO with a self-supervised preference degree."""

    reward_is_log_odds = False
    batch_type = DegreeBatch
    needs = DPO.needs | Needs(policy={"hidden"})
    initial_loss = None
    metric_names = (*DPO.metric_names, "loss/preference", "loss/degree", "degree/accuracies")

    def __init__(self, *args: Any, gamma: NonNegativeFloat = 0.1, head_lr: PositiveFloat = 1e-3, **kwargs: Any):
        """
        Args:
            gamma: weight of the classification, no unit; 0 is DPO (our choice: the paper's value is not known to us).
            head_lr: learning rate of the head: at the policy's a fresh one would hardly move (our choice).
        """
        super().__init__(*args, **kwargs)
        self.gamma, self.head_lr = gamma, float(head_lr)

    def heads(self) -> dict[str, SideHead]:
        degrees = self.batch_type.levels + 1  # type: ignore[attr-defined]
        return {"degree_head": SideHead(lambda: nn.Linear(self.policy.hidden_size, degrees), self.head_lr)}

    def degree_logits(self, logps: ResponseLogps) -> Float[Tensor, "N degrees"]:
        """From the last hidden state of each response, in the head's precision."""
        last = logps.extras["hidden"][logps.lengths.cumsum(0) - 1]
        with torch.autocast(last.device.type, enabled=False):
            return self.degree_head(last.to(self.degree_head.weight.dtype))

    def terms(self, batch: DegreeBatch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, Term]:
        degree = batch.shares * degree_loss(self.degree_logits(logps), batch.degrees)
        both = degree.new_zeros(len(batch.responses.prompt_end)).index_add(0, logps.prompt_index, degree)
        preference = super().terms(batch, logps[batch.original], statistics)
        return preference | {"degree": Term(both, "prompts", scale=self.gamma)}

    def track(self, stage: Stage, batch: DegreeBatch, logps: ResponseLogps) -> None:
        super().track(stage, batch, logps[batch.original])
        right = self.degree_logits(logps).argmax(1) == batch.degrees
        self.means(stage).update(**{"degree/accuracies": right.float()})
