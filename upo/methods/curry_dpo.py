"""Curry-DPO, curriculum DPO (Pattnaik et al., Findings of EMNLP 2024), https://arxiv.org/abs/2403.07230.

DPO on several pairs a prompt from K ranked responses: the best against each other one, easy ones (a wide gap) first,
hard ones last. The order is `data.sampler: upo.data.curriculum.CurriculumSampler`; in the paper's best variant each
stage's reference is the model at the end of the stage before, which the callback
`upo.callbacks.staged_reference.StagedReference` does. Data of one pair a prompt is one stage: DPO.
From knowledge (the curriculum itself is confirmed by abstracts). The gap is one of ranks where there are ranks, else of
scores; pairs of one prompt with equal gaps share a stage.
"""

from upo.data.example import Example
from upo.data.units import Draft
from upo.data.views import PairedView, preference
from upo.methods.dpo import DPO


class TopPairedView(PairedView):
    """Pairs of a prompt's best response with each worse one."""

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        """The widest gap first."""
        ranked = [(p, r) for r in example.responses if (p := preference(r)) is not None]
        if not ranked:
            return []
        top, best = max(ranked, key=lambda x: x[0])
        others = sorted((x for x in ranked if x[0] < top), key=lambda x: x[0])
        return [Draft(example.with_responses((best, worse))) for _, worse in others[:max_pairs]]


class CurryDPO(DPO):
    """DPO on the best response against each other one, for a curriculum"""

    view = TopPairedView()
