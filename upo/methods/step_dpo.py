"""Step-DPO (Lai et al., 2024), https://arxiv.org/abs/2406.18629; with it Chain of Preference Optimization.

DPO on single reasoning steps: the right steps before the first wrong one go into the prompt, and the wrong step is
rejected against a right one. Prefix tokens therefore have no gradient. On thoughts of a tree search (source
`tot_game24_chain`: a thought on the selected path against its siblings) the same loss is Chain of Preference
Optimization (Zhang et al., 2024, https://arxiv.org/abs/2406.09136). The paper has no discount, and there is none here.

Deviations: the chosen step is the data's, not sampled again from the model itself. A step that others follow is
closed by its line end instead of EOS: EOS would teach to stop after every step.
"""

from typing import Any

from attrs import evolve
from jsonargparse.typing import PositiveFloat

from upo.data.example import Example, Response
from upo.data.units import Draft
from upo.data.views import PairedView, pairs_of
from upo.methods.dpo import DPO


class StepPairedView(PairedView):
    """Pairs of single steps, one a line: what both solutions begin with belongs to the prompt, what follows is cut."""

    wants = "pair of solutions that part at the first wrong step"

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        steps = (first_difference(pair) for pair in pairs_of(example, max_pairs))
        return [Draft(step) for step in steps if step is not None]


def first_difference(pair: Example) -> Example | None:
    """The pair of the first steps that differ, behind a prompt that holds the steps before them.

    None where one solution only goes on where the other ends, or where the data's marks (attributes "step_1", ...)
    say that the first wrong step of the rejected solution is another one.
    """
    solutions = [r.text.split("\n") for r in pair.responses]
    place = next((i for i, (a, b) in enumerate(zip(*solutions, strict=False)) if a != b), None)
    if place is None:
        return None
    marks = pair.responses[1].attributes
    wrong = [i for i in range(len(solutions[1])) if marks.get(f"step_{i + 1}", 1.0) < 1]
    if wrong and wrong[0] != place:
        return None
    steps = tuple(_step(r, lines, place) for r, lines in zip(pair.responses, solutions, strict=True))
    return evolve(pair, prompt=_behind(pair, "".join(f"{line}\n" for line in solutions[0][:place])), responses=steps)


def _step(response: Response, lines: list[str], place: int) -> Response:
    complete = response.complete and place == len(lines) - 1
    return evolve(response, text=lines[place] + ("" if complete else "\n"), complete=complete)


def _behind(pair: Example, prefix: str):
    """The prompt with the beginning of the answer."""
    if not prefix:
        return pair.prompt
    if isinstance(pair.prompt, str):
        return pair.prompt + prefix
    return (*pair.prompt, {"role": "assistant", "content": prefix})


class StepDPO(DPO):
    """DPO on the first step that is wrong."""

    view = StepPairedView()

    def __init__(self, *args: Any, beta: PositiveFloat = 0.4, **kwargs: Any):
        """
        Args:
            beta: strength of the KL constraint, in 1/nats (paper: 0.5 for 72B models, 0.4 for others; Chain of
                Preference Optimization: 0.2 in the authors' script).
        """
        super().__init__(*args, beta=beta, **kwargs)
