"""PandaLM's test set (Wang et al. 2023, https://arxiv.org/abs/2306.05087): pairs with three human votes."""

from attrs import evolve

from upo.data.example import Example
from upo.data.lines import Row, Unusable
from upo.data.sources.parts import pair, per_row, user


@per_row
def pandalm(row: Row) -> Example:
    """Two responses; the majority's favourite comes first, and the votes' mean is the soft label (a tie is half).

    A tie is dropped: most voted tie, or each of the three voted something else.
    """
    votes = [row.number(f"annotator{i}") for i in (1, 2, 3)]
    if not set(votes) <= {0, 1, 2}:
        raise Unusable("a vote is neither 0, 1 nor 2")
    request = row.text("instruction") + (f"\n\n{row.text('input')}" if row.data.get("input") else "")
    first, second = row.text("response1"), row.text("response2")
    favourite = max((0, 1, 2), key=votes.count)
    ahead, behind = (second, first) if favourite == 2 else (first, second)
    soft_label = sum(0.5 if vote == 0 else float(vote == favourite) for vote in votes) / 3
    example = pair(user(request), ahead, behind, soft_label=soft_label)
    if favourite == 0 or votes.count(favourite) == 1:
        return example.with_responses(tuple(evolve(r, rank=0) for r in example.responses))
    return example
