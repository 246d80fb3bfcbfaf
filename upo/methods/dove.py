"""DOVE, joint preferences over instruction-response pairs (Bansal et al., 2024), https://arxiv.org/abs/2404.00530.

DPO between (I_w, R_w) and (I_l, R_l) whose instructions may DIFFER: an annotator can say which of two unrelated answers
serves its instruction better. log Z(I) does not cancel then, which the method accepts; where both instructions are the
same the loss is DPO's. Verified in the official code; beta is DPO's (official code: 0.1).

Joint pairs are made from absolute judgements (a score or a label of each response): every response is paired with one
partner of another score, the same for the whole run, mostly from another prompt. Deviations: the tokens of the
instructions are never scored (an option of the official code).
"""

from attrs import evolve

from upo.data.batch import Batch
from upo.data.example import Example, Response
from upo.data.units import Draft, Unit
from upo.data.views import PairedView
from upo.errors import UserError
from upo.methods.common.base import Stage
from upo.methods.dpo import DPO
from upo.models.logps import ResponseLogps


def judgement(response: Response) -> float | None:
    """A response's score, else its label as 1 or 0, else None: ranks compare responses of one prompt only."""
    if response.score is not None:
        return response.score
    return None if response.desirable is None else float(response.desirable)


class JointView(PairedView):
    """Joint pairs, two prompts with a response each: rows 2i and 2i + 1 are chosen and rejected response of pair i."""

    wants = "response with a score or a label of its own"
    noun = "joint pairs"
    pairs_up = True

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        return [Draft(example.with_responses((r,))) for r in example.responses if judgement(r) is not None]

    def partner_key(self, example: Example) -> str:
        return str(judgement(example.responses[0]))

    def contradicts(self, unit: Unit) -> bool:
        return False

    def join(self, unit: Unit, partner: Unit | None, max_length: int) -> Unit:
        if partner is None:
            raise UserError("joint preferences need responses of different scores or labels in each split")
        better, worse = sorted((unit, partner), key=lambda u: -judgement(u.example.responses[0]))  # type: ignore[operator]
        columns = {name: (*better.columns[name], *worse.columns[name]) for name in unit.columns}
        return evolve(unit, groups=(*better.groups, *worse.groups), columns=columns)


class DOVE(DPO):
    """DPO on joint preferences over instruction-response pairs."""

    view = JointView()

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        """Margins are taken within joint pairs: each pair counts as one prompt."""
        super().update_metrics(stage, batch, evolve(logps, prompt_index=logps.prompt_index // 2))
