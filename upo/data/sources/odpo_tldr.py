"""ODPO's summaries of Reddit posts, rated 1..7 by GPT-4 (Amini et al. 2024, https://arxiv.org/abs/2402.10571)."""

from collections.abc import Iterable, Iterator

from upo.data.example import Example, Response
from upo.data.lines import Row, Unusable
from upo.data.report import SourceReport
from upo.data.sources.parts import each


def odpo_tldr(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
    """One list a post from a JSON object {post: {"responses": [...], "rewards": [...]}}.

    A plain text prompt as in the TL;DR data (Stiennon et al. 2020): the post, then "TL;DR:", then the summary.
    """

    def posts() -> Iterator[Row]:
        for row in rows:
            if not row.data:
                report.drop("no post", row.where)
            for i, (post, summaries) in enumerate(row.data.items(), start=1):
                yield Row({"post": post, "summaries": summaries}, f"{row.where}, post {i}")

    return each(posts(), report, _post)


def _post(row: Row) -> Example:
    summaries = row.inner("summaries")
    texts, rewards = summaries.items("responses"), summaries.items("rewards")
    if len(texts) != len(rewards):
        raise Unusable("responses and rewards differ in number")
    records = [Row({"text": text, "reward": reward}, row.where) for text, reward in zip(texts, rewards, strict=True)]
    responses = tuple(Response(r.text("text"), score=r.number("reward")) for r in records)
    return Example(f"{row.text('post')}\n\nTL;DR:", responses)
