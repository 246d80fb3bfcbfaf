"""Step-DPO (Lai et al., 2024), https://arxiv.org/abs/2406.18629; also Chain of Preference Optimization.

DPO on single reasoning steps: the correct steps before the first wrong one are moved into the prompt, and the wrong
step is the rejected response to a correct one. Tokens of earlier steps therefore have no gradient. On thoughts of a
tree search (source `tot_game24_chain`: a thought on the selected path against its siblings) the same loss is Chain of
Preference Optimization (Zhang et al., 2024, https://arxiv.org/abs/2406.09136). There is no discount, as in the paper.

Verified: equation and beta, in the paper. Deviations: the chosen step is taken from the data, where the authors sample
it from the model. A step that is not the last one ends with its line break instead of EOS, because EOS would teach the
model to stop after every step.
"""

from typing import Any

from attrs import evolve
from jsonargparse.typing import PositiveFloat

from upo.data.example import Example, Prompt, Response
from upo.data.units import Draft
from upo.data.views import PairedView, pairs_of
from upo.methods.dpo import DPO


class StepPairedView(PairedView):
    """Pairs of single steps (lines): common first lines are moved into the prompt, later lines are dropped."""

    wants = "pair of solutions that part at the first wrong step"

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        steps = (first_difference(pair) for pair in pairs_of(example, max_pairs))
        return [Draft(step) for step in steps if step is not None]


def first_difference(pair: Example) -> Example | None:
    """The pair of the first steps that differ, with the steps before them in the prompt.

    None where one solution is the beginning of the other, or where the attributes "step_1", ... of the rejected
    solution (below 1: wrong) say that its first wrong step is another one.
    """
    solutions = [r.text.split("\n") for r in pair.responses]
    index = next((i for i, (a, b) in enumerate(zip(*solutions, strict=False)) if a != b), None)
    if index is None:
        return None
    attributes = pair.responses[1].attributes
    wrong = [i for i in range(len(solutions[1])) if attributes.get(f"step_{i + 1}", 1.0) < 1]
    if wrong and wrong[0] != index:
        return None
    steps = tuple(_step(r, lines, index) for r, lines in zip(pair.responses, solutions, strict=True))
    prefix = "".join(f"{line}\n" for line in solutions[0][:index])
    return evolve(pair, prompt=_extended_prompt(pair, prefix), responses=steps)


def _step(response: Response, lines: list[str], index: int) -> Response:
    complete = response.complete and index == len(lines) - 1
    return evolve(response, text=lines[index] + ("" if complete else "\n"), complete=complete)


def _extended_prompt(pair: Example, prefix: str) -> Prompt:
    """The prompt followed by the beginning of the answer."""
    if not prefix:
        return pair.prompt
    if isinstance(pair.prompt, str):
        return pair.prompt + prefix
    return (*pair.prompt, {"role": "assistant", "content": prefix})


class StepDPO(DPO):
    """DPO on the first wrong step of a solution."""

    view = StepPairedView()

    def __init__(self, *args: Any, beta: PositiveFloat = 0.4, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (paper: 0.5 for 72B models, 0.4 for others; official code of
                Chain of Preference Optimization: 0.2).
        """
        super().__init__(*args, beta=beta, **kwargs)
