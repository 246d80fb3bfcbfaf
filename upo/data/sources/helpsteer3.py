"""HelpSteer3-Preference (Wang et al. 2025, https://arxiv.org/abs/2505.11475): pairs that people compared.

Hub: nvidia/HelpSteer3, its configuration `preference`.
"""

from attrs import evolve

from upo.data.example import Example, Response
from upo.data.messages import conversation, messages_in
from upo.data.row import Row, Unusable
from upo.data.sources.parts import per_row


@per_row
def helpsteer3(row: Row) -> Example:
    """A conversation and two responses that several people compared.

    `overall_preference` below 0 is for the first (-3: much better), above 0 for the second, and 0 is a tie. The soft
    label is the share of annotators who prefer the chosen one, ties counting half.
    """
    turns = messages_in(row, "context")
    if turns is None:
        raise Unusable("`context` is no list of messages")
    verdict = row.number("overall_preference")
    if not -3 <= verdict <= 3:
        raise Unusable("`overall_preference` is not in -3..3")
    texts = [row.text("response1"), row.text("response2")]
    votes = (
        [vote.number("score") for vote in row.inners("individual_preference")] if "individual_preference" in row else []
    )
    second = verdict > 0
    ranks = (0, 1) if verdict else (0, 0)
    ordered = texts[::-1] if second else texts
    favour = [0.5 if vote == 0 else float((vote > 0) == second) for vote in votes]
    pair = tuple(Response(text, rank=rank) for text, rank in zip(ordered, ranks, strict=True))
    return evolve(Example(conversation(turns), pair), soft_label=sum(favour) / len(favour) if favour else None)
