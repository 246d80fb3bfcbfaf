"""PRMBench (Song et al. 2025, https://arxiv.org/abs/2501.03124): PRM800K solutions and versions with errors put in."""

from typing import Any

from upo.data.example import Example, Response
from upo.data.lines import Row, Unusable
from upo.data.sources.parts import per_row, user


@per_row
def prmbench(row: Row) -> Example:
    """The original solution is chosen, the altered one rejected; one step a line.

    Attributes say which steps are right: "step_1", "step_2" ... are 1.0, or 0.0 where `error_steps` lists the step.
    The rationale says what was altered.
    """
    if row.text("original_question") != row.text("modified_question"):
        raise Unusable("questions of the two solutions differ")
    chosen = _solution(row, "original_process", rank=0, errors=[])
    rejected = _solution(row, "modified_process", rank=1, errors=row.items("error_steps"))
    reason = row.text("reason") if "reason" in row else ""
    return Example(user(row.text("original_question")), (chosen, rejected), rationale=reason or None)


def _solution(row: Row, field: str, rank: int, errors: list[Any]) -> Response:
    steps = row.items(field)
    if not all(isinstance(step, str) for step in steps):
        raise Unusable(f"`{field}` holds something that is not a text")
    if not all(error in range(1, len(steps) + 1) for error in errors):
        raise Unusable("an error step lies outside the solution")
    right = {f"step_{i}": float(i not in errors) for i in range(1, len(steps) + 1)}
    return Response("\n".join(step.replace("\n", " ") for step in steps), rank=rank, attributes=right)
