"""Argilla's preference sets (https://huggingface.co/argilla): pairs with the ratings of both responses.

Hub: argilla/distilabel-intel-orca-dpo-pairs, argilla/ultrafeedback-binarized-preferences-cleaned, argilla/dpo-mix-7k;
Intel/orca_dpo_pairs has no ratings.
"""

from collections.abc import Iterable, Iterator

from attrs import evolve

from upo.data.example import Example
from upo.data.records import Names, example_of
from upo.data.report import SourceReport
from upo.data.row import Row, Unusable
from upo.data.sources.parts import each

RATINGS = ("{}-rating", "{}_rating", "{}_score")


def argilla(rows: Iterable[Row], report: SourceReport, *, min_rating: float | None = None) -> Iterator[Example]:
    """{system, input or question or prompt, chosen, rejected}, texts or messages; ties by `status` are dropped.

    Scores are `chosen-rating` and `rejected-rating` (also with _ for -), or the two ratings in `rating`.

    Args:
        min_rating: least rating of a chosen response, e.g. 8 of 10; null: all.
    """

    def convert(row: Row) -> Example:
        if "status" in row and row.text("status") == "tie":
            raise Unusable("tie")
        made = example_of(row, Names(chat=True))
        if len(made.responses) != 2:
            raise Unusable("missing `chosen`")
        names = next((x for x in RATINGS if x.format("chosen") in row and x.format("rejected") in row), None)
        if names:
            scores = [row.number(names.format(side)) for side in ("chosen", "rejected")]
        elif "rating" in row and len(row.items("rating")) == 2:  # in the order of the generations
            rated = [Row({"rating": x}, row.where).number("rating") for x in row.items("rating")]
            scores = sorted(rated, reverse=True)
        else:
            scores = []
        if min_rating is not None and (not scores or scores[0] < min_rating):
            raise Unusable(f"chosen response rated below {min_rating:g}")
        known = zip(made.responses, scores, strict=True) if scores else ()
        return made.with_responses(tuple(evolve(r, score=x) for r, x in known)) if scores else made

    return each(rows, report, convert)
