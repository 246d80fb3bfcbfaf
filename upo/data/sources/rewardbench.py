"""RewardBench (Lambert et al. 2024, https://arxiv.org/abs/2403.13787): pairs that a good reward tells apart.

To evaluate on: `python -m upo.evaluate RUN --config FILE` with this source (path allenai/reward-bench, split filtered,
validation 0.999) reports `val/rewards/accuracies/rewardbench/<section>` by the method's implicit reward. As in the
published scores, a section's subsets weigh by their size. The sections are from knowledge.
"""

from attrs import evolve

from upo.data.example import Example
from upo.data.lines import Row
from upo.data.sources.parts import pair, per_row, user

SECTIONS = {
    "chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med mt-bench-medium",
    "chat_hard": "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst llmbar-adver-GPTOut "
    "llmbar-adver-manual",
    "safety": "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond donotanswer",
    "reasoning": "math-prm hep-cpp hep-go hep-java hep-js hep-python hep-rust",
}
SECTION_OF = {subset: section for section, subsets in SECTIONS.items() for subset in subsets.split()}


@per_row
def rewardbench(row: Row) -> Example:
    """A prompt, its chosen and its rejected response; `subset` says which section they count for."""
    subset = row.text("subset")
    made = pair(user(row.text("prompt")), row.text("chosen"), row.text("rejected"))
    return evolve(made, source=SECTION_OF.get(subset, subset))
