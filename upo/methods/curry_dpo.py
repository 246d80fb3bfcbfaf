"""Curry-DPO, curriculum DPO (Pattnaik et al., Findings of EMNLP 2024), https://arxiv.org/abs/2403.07230.

DPO on several pairs per prompt, made from K ranked responses: the best one against each other one. Pairs with a wide
gap (easy) are trained first, those with a narrow gap (hard) last; `data.sampler: upo.data.curriculum.CurriculumSampler`
orders them so. In the paper's best variant the reference of a stage is the model at the end of the stage before, which
the callback `upo.callbacks.staged_reference.StagedReference` does. With one pair per prompt this is DPO.
From knowledge; abstracts of the paper confirm the curriculum. The gap is a difference of ranks where there are ranks,
else of scores; pairs of one prompt with equal gaps belong to one stage.
"""

from upo.data.example import Example
from upo.data.units import Draft
from upo.data.views import PairedView, preference
from upo.methods.dpo import DPO


class TopPairedView(PairedView):
    """Pairs of a prompt's best response with each worse one."""

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        """At most `max_pairs` pairs of a prompt, the widest gap first."""
        ranked = [(p, r) for r in example.responses if (p := preference(r)) is not None]
        if not ranked:
            return []
        top, best = max(ranked, key=lambda x: x[0])
        others = sorted((x for x in ranked if x[0] < top), key=lambda x: x[0])
        return [Draft(example.with_responses((best, worse))) for _, worse in others[:max_pairs]]


class CurryDPO(DPO):
    """DPO on the best response against each other one, for a curriculum; beta is DPO's."""

    view = TopPairedView()
