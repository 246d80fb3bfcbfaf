"""UltraFeedback (Cui et al. 2023, https://arxiv.org/abs/2310.01377): GPT-4's scores; pairs or lists of four.

Hub: openbmb/UltraFeedback (lists), HuggingFaceH4/ultrafeedback_binarized with `split: train_prefs` (pairs).
"""

from attrs import evolve

from upo.data.example import Example, Response
from upo.data.records import Names, example_of
from upo.data.row import Row, Unusable
from upo.data.sources.parts import per_row, user

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")

GRADES = {str(grade) for grade in range(11)}


@per_row
def ultrafeedback(row: Row) -> Example:
    """Binarized: a pair with both scores (equal ones are ties). Raw: four responses with four aspects rated 1..5.

    The raw score is the mean of the aspects ("fine-grained_score"); "overall_score" stands in where that is missing,
    because some of its values are known to be 10 where the critique meant 1.
    """
    if "completions" in row:
        return Example(user(row.text("instruction")), tuple(map(_completion, row.inners("completions"))))
    scores = row if "score_chosen" in row else row.inner("metadata")
    made = example_of(row, Names(chat=True))
    if len(made.responses) != 2:
        raise Unusable("missing `chosen`")
    known = zip(made.responses, ("score_chosen", "score_rejected"), strict=True)
    return made.with_responses(tuple(evolve(r, score=scores.number(field)) for r, field in known))


def _completion(row: Row) -> Response:
    annotations = row.inner("annotations")
    ratings = {aspect: annotations.inner(aspect).data.get("Rating") for aspect in ASPECTS if aspect in annotations}
    return Response(
        row.text("response"),
        score=row.number("fine-grained_score" if "fine-grained_score" in row else "overall_score"),
        # ratings are texts, "N/A" where GPT-4 gave none
        attributes={aspect: float(str(rating)) for aspect, rating in ratings.items() if str(rating) in GRADES},
    )
