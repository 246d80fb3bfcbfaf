"""From examples to a split: drafts, token ids, limits, partners and columns; everything left out is counted."""

import json
from collections.abc import Collection, Sequence

from attrs import evolve

from upo.data.codec import TextCodec
from upo.data.example import Example
from upo.data.partners import with_partners
from upo.data.report import DataReport
from upo.data.rounds import Split
from upo.data.tokenize import BOTH_LONG, Limits
from upo.data.views import View
from upo.errors import UserError


def check_rewards(known: Collection[str], rewards: Sequence[str], relabel: Collection[str]) -> None:
    """Raises a `UserError` where a method's rewards, or those that relabel the data, are not among the data's."""
    if missing := [name for name in rewards if name not in known]:
        raise UserError(
            f"the method reads the rewards {list(rewards)}, but `data.rewards` lacks {missing}; "
            "name a reward class there or change `model.reward_weights`"
        )
    if missing := [name for name in relabel if name not in known]:
        raise UserError(f"`data.relabel` weighs {missing}, which `data.rewards` lacks: {list(known)}")


def nothing_left(view: View, max_length: int, report: DataReport) -> UserError:
    """The error of data of which no unit is left: what was dropped, and what may be set otherwise."""
    dropped = {name: part["dropped"] for name, part in report.to_dict().items()}
    refused = any("chat template" in reason for part in dropped.values() for reason in part)
    hint = "; policy.chat_template takes a template that fits these conversations" if refused else ""
    notes = "".join(f"; {what}" for part in report.to_dict().values() for what in part["notes"] if what == BOTH_LONG)
    return UserError(
        f"nothing to train on: the method wants a {view.wants} that fits into max_length={max_length}; what was "
        f"dropped: {json.dumps(dropped)}{hint}{notes}"
    )


def split_of(
    examples: Sequence[Example],
    view: View,
    codec: TextCodec,
    limits: Limits,
    report: DataReport,
    *,
    side: str,
    rewards: Sequence[str] = (),
    max_pairs: int = 5,
    seed: int = 0,
) -> Split:
    """The units that a view makes of examples.

    Args:
        side: of the data, for the report: "train" or "validation".
        rewards: auxiliary rewards by name that the examples bring along, one column each.
        max_pairs: of a ranked list that is seen as pairs.
        seed: of the partners.
    """
    drafts = []
    for example in examples:
        mine = view.drafts(example, max_pairs)
        if not mine:
            report.drop(example.source, f"no {view.wants}")
        drafts += mine
    units = []
    for unit in codec.encode(drafts, limits, report):
        if unit is not None and view.contradicts(unit):
            report.drop(unit.example.source, "equal tokens, different preference")
        elif unit is not None:
            measured = {name: [float(r.rewards[name]) for r in unit.example.responses] for name in rewards}
            units.append(evolve(unit, columns={**unit.columns, **measured}))
            report.keep(unit.example.source, kind=f"{side} {view.noun}")
    return Split.of(with_partners(units, view, seed, limits.max_length), view)
