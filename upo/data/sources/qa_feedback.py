"""QA-Feedback of Fine-Grained RLHF (Wu et al. 2023, https://arxiv.org/abs/2306.01693): lists of four answers."""

from itertools import combinations

from upo.data.example import Example, Response
from upo.data.lines import Row, Unusable
from upo.data.sources.parts import per_row, user


@per_row
def qa_feedback(row: Row) -> Example:
    """Four answers to a question about passages, compared in all six pairs (0 tie, 1 first, 2 second is better).

    The score is the number of wins, ties counting half. Where the six verdicts agree with one order (97 %), answers
    also get their rank in it; where they run in a circle, the score alone.
    """
    answers = [row.text(f"prediction {i}") for i in (1, 2, 3, 4)]
    given = row.items("preference")
    if len(given) != 6 or not all(verdict in (0, 1, 2) for verdict in given):
        raise Unusable("`preference` is not six verdicts of 0, 1 or 2")
    verdicts = [int(verdict) for verdict in given]
    compared = list(zip(combinations(range(4), 2), verdicts, strict=True))
    wins = [0.0] * 4
    for (i, j), verdict in compared:
        wins[i] += (0.5, 1.0, 0.0)[verdict]
        wins[j] += (0.5, 0.0, 1.0)[verdict]
    ordered = all(
        verdict == (0 if wins[i] == wins[j] else 1 if wins[i] > wins[j] else 2) for (i, j), verdict in compared
    )
    return Example(
        user(f"{_passages(row)}\n\n{row.text('question')}"),
        tuple(
            Response(text, score=own, rank=sum(other > own for other in wins) if ordered else None)
            for text, own in zip(answers, wins, strict=True)
        ),
    )


def _passages(row: Row) -> str:
    """Each passage is a list: its title, then its sentences."""
    try:
        return "\n\n".join(f"{title}\n{' '.join(sentences)}" for title, *sentences in row.items("passages"))
    except (TypeError, ValueError):
        raise Unusable("`passages` is not a list of lists of texts") from None
