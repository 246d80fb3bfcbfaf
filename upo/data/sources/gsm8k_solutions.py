"""GSM8K's example model solutions (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168): labels.

File: example_model_solutions.jsonl of https://github.com/openai/grade-school-math.
"""

from upo.data.example import Example, Response
from upo.data.lines import Row
from upo.data.sources.parts import per_row, user

SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@per_row
def gsm8k_solutions(row: Row) -> Example:
    """Four solutions a question, desirable where the final answer is right."""
    solutions = [row.inner(solver) for solver in SOLVERS]
    return Example(
        user(row.text("question")),
        tuple(Response(s.text("solution"), desirable=s.flag("is_correct")) for s in solutions),
    )
