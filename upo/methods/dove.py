"""DOVE, joint preferences over instruction-response pairs (Bansal et al., 2024), https://arxiv.org/abs/2404.00530.

DPO between (I_w, R_w) and (I_l, R_l) whose instructions may DIFFER: annotators can say which of two unrelated answers
serves its instruction better. log Z(I) does not cancel then, which the method accepts; where both instructions are the
same it is DPO. Verified in the official code.

Joint pairs come from absolute judgements (a score or a label of each response): every response meets one partner of
another score, fixed for the run, mostly from another prompt. Deviations: the instructions' own tokens are never scored
(the official code can do so).
"""

from collections.abc import Sequence
from typing import Self

from attrs import evolve, frozen

from upo.data.batch import LayOut, PairedBatch
from upo.data.example import Example, Response
from upo.data.layout import Tokens
from upo.errors import UserError
from upo.methods.common.base import Stage
from upo.methods.dpo import DPO
from upo.models.logps import ResponseLogps


def judgement(response: Response) -> float | None:
    """How good a response is beyond its own prompt: its score, else its label; ranks hold within a prompt only."""
    if response.score is not None:
        return response.score
    return None if response.desirable is None else float(response.desirable)


@frozen(eq=False)
class JointBatch(PairedBatch):
    """B joint pairs, 2B prompts with a response each: row 2i is the chosen, row 2i + 1 the rejected one of pair i."""

    wants, unit = "response with a score or a label of its own", "joint pairs"
    borrows_units = True

    @classmethod
    def views(cls, example: Example, max_pairs: int) -> list[Example]:
        return [example.with_responses((r,)) for r in example.responses if judgement(r) is not None]

    @classmethod
    def partner_key(cls, example: Example) -> str:
        return str(judgement(example.responses[0]))

    @classmethod
    def contradicts(cls, unit: Tokens) -> bool:
        return False

    @classmethod
    def collate(cls, units: Sequence[Tokens], lay_out: LayOut, borrowed: Sequence[Tokens]) -> Self:
        if not borrowed:
            raise UserError("joint preferences need responses of different scores or labels in each split")
        pairs = [
            sorted(pair, key=lambda u: -judgement(u.example.responses[0]))  # type: ignore[operator]
            for pair in zip(units, borrowed, strict=True)
        ]
        return cls(lay_out([unit for pair in pairs for unit in pair]))

    @property
    def counts(self) -> dict[str, int]:
        """As the step counts them: a pair is one prompt with one response, its partner comes as a guest."""
        pairs = len(self.responses.prompt_end) // 2
        return {"prompts": pairs, "responses": pairs, "tokens": len(self.responses.targets)}


class DOVE(DPO):
    """DPO on joint preferences over instruction-response pairs."""

    batch_type = JointBatch

    def track(self, stage: Stage, batch: JointBatch, logps: ResponseLogps) -> None:
        """Margins are taken within joint pairs, which here stand for prompts."""
        super().track(stage, batch, evolve(logps, prompt_index=logps.prompt_index // 2))
