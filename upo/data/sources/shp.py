"""Stanford Human Preferences (Ethayarajh et al. 2022, https://arxiv.org/abs/2110.08420): pairs of Reddit comments.

Hub: stanfordnlp/SHP.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from upo.data.example import Example
from upo.data.lines import Row, Unusable
from upo.data.report import SourceReport
from upo.data.sources.parts import each, pair, user


def shp(
    rows: Iterable[Row], report: SourceReport, *, min_score_ratio: float = 2.0, max_pairs: int = 5
) -> Iterator[Example]:
    """Comment pairs with the votes of both as scores; the post is the prompt.

    Args:
        min_score_ratio: least ratio of the two comments' votes; 2 as in KTO's and UPO's experiments.
        max_pairs: at most this many pairs a post, the first ones; 5 as in KTO's and UPO's experiments.
    """
    pairs_of: Counter[str] = Counter()

    def convert(row: Row) -> Example:
        post = row.text("history")
        a, b = ((row.text(f"human_ref_{x}"), row.number(f"score_{x}")) for x in "AB")
        (chosen, high), (rejected, low) = (a, b) if row.number("labels") == 1 else (b, a)
        if row.number("score_ratio") < min_score_ratio:
            raise Unusable(f"score ratio below {min_score_ratio:g}")
        if pairs_of[post] == max_pairs:
            raise Unusable(f"more than {max_pairs} pairs of the post")
        pairs_of[post] += 1
        return pair(user(post), chosen, rejected, scores=(high, low))

    return each(rows, report, convert)
