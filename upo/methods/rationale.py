"""RDPO and RORPO, preferences with rationales (Just et al., 2024), https://arxiv.org/abs/2407.14477.

The model also learns to say why the chosen response is better: p(w > l, r | x) = p(w > l | x) p(r | x, w > l) adds the
log-likelihood of the rationale r, under a prompt of its own that shows both responses, to DPO (RDPO) or ORPO (RORPO).
The authors' code puts that term through -log sigmoid, whose gradient is 1/2 to 1 times the paper's: `log_sigmoid`.
Read in that code; the paper's form in a published summary. Deviation: the wording of the rationale's prompt.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from attrs import evolve, frozen
from jaxtyping import Bool, Float
from jsonargparse.typing import NonNegativeFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.data.batch import LayOut, PairedBatch
from upo.data.example import Example, Response
from upo.data.layout import Tokens
from upo.methods.common.base import Method, Stage, Term
from upo.methods.dpo import DPO
from upo.methods.orpo import ORPO
from upo.models.logps import ResponseLogps


def rationale_loss(
    rationale_logps: Float[Tensor, "pairs"], *, gamma: float, log_sigmoid: bool = False
) -> Float[Tensor, "pairs"]:
    """-gamma log p(r | x, w > l), the paper's; or -log sigmoid(gamma log p(r | x, w > l)), the code's.

    One value a pair, unreduced.
    """
    return -logsigmoid(gamma * rationale_logps) if log_sigmoid else -gamma * rationale_logps


@frozen(eq=False)
class RationaleBatch(PairedBatch):
    """B pairs with a rationale each: rows 3i, 3i + 1, 3i + 2 are chosen, rejected, rationale."""

    wants = "pair of responses of different preference with a rationale"

    @classmethod
    def views(cls, example: Example, max_pairs: int) -> list[Example]:
        return PairedBatch.views(example, max_pairs) if example.rationale else []

    @classmethod
    def companions(cls, example: Example) -> list[Example]:
        """The question why, behind the conversation, with the rationale as its answer."""
        chosen, rejected = (response.text for response in example.responses)
        why = f"Another answer:\n{rejected}\n\nWhy is the first one better?"
        if isinstance(example.prompt, str):
            prompt = f"{example.prompt}{chosen}\n\n{why}\n\n"
        else:
            prompt = (*example.prompt, {"role": "assistant", "content": chosen}, {"role": "user", "content": why})
        return [evolve(example, prompt=prompt, responses=(Response(example.rationale or ""),))]

    @classmethod
    def collate(cls, units: Sequence[Tokens], lay_out: LayOut, borrowed: Sequence[Tokens]) -> Self:
        return cls(lay_out([part for unit in units for part in unit.parts]))

    @property
    def own(self) -> Bool[Tensor, "N"]:
        """The pairs' responses, without rationales."""
        return torch.arange(len(self.responses.lengths), device=self.responses.lengths.device) % 3 < 2

    @property
    def preferred(self) -> Bool[Tensor, "pair_responses"]:
        return torch.arange(int(self.own.sum()), device=self.own.device) % 2 == 0

    @property
    def counts(self) -> dict[str, int]:
        """Pairs and their responses; rationales are not counted."""
        lengths = self.responses.lengths[self.own]
        return {"prompts": len(lengths) // 2, "responses": len(lengths), "tokens": int(lengths.sum())}


class Rationales(Method):
    """Adds the rationale to a pairwise method: `class RDPO(Rationales, DPO)`."""

    batch_type = RationaleBatch

    def __init__(self, *args: Any, gamma: NonNegativeFloat = 1e-3, log_sigmoid: bool = False, **kwargs: Any):
        """
        Args:
            gamma: weight of the rationale's log-likelihood, a sum over its tokens, in 1/nats (authors' command: 0.001;
                their default file: 0.1).
            log_sigmoid: the term of the authors' code instead of the paper's; at gamma 0 it is a constant log 2.
        """
        super().__init__(*args, **kwargs)
        self.gamma, self.log_sigmoid = gamma, log_sigmoid

    def terms(self, batch: RationaleBatch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, Term]:
        rationale = rationale_loss(logps.logps[2::3], gamma=self.gamma, log_sigmoid=self.log_sigmoid)
        return super().terms(batch, logps[batch.own], statistics) | {"rationale": Term(rationale, "prompts")}

    def track(self, stage: Stage, batch: RationaleBatch, logps: ResponseLogps) -> None:
        super().track(stage, batch, logps[batch.own])


class RDPO(Rationales, DPO):
    """DPO with rationales."""

    metric_names = (*DPO.metric_names, "loss/preference", "loss/rationale")
    initial_loss = None


class RORPO(Rationales, ORPO):
    """ORPO with rationales."""

    metric_names = (*ORPO.metric_names, "loss/rationale")
