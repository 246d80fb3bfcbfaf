"""Whose responses stand in for "a response to another prompt" (KTO's z0): fixed for the whole run."""

from collections import defaultdict
from collections.abc import Sequence

import torch

from upo.data.units import Group, Unit
from upo.data.views import View


def with_partners(units: Sequence[Unit], view: View, seed: int, max_length: int) -> list[Unit]:
    """The units of a split, each joined with its partner where the view asks for one."""
    if not view.pairs_up:
        return list(units)
    partners = derangement([view.partner_key(unit.example) for unit in units], seed)
    others = [None] * len(units) if partners is None else [units[i] for i in partners]
    return [view.join(unit, other, max_length) for unit, other in zip(units, others, strict=True)]


def behind(unit: Unit, partner: Unit, max_length: int) -> Group:
    """A partner's responses behind the unit's own prompt, which is cut on the left if need be."""
    prompt, responses = unit.prompt, partner.responses
    room = max(2, max_length - max(map(len, responses)))
    if len(prompt) > room:
        prompt = [*prompt[:1], *prompt[len(prompt) - room + 1 :]]
    return Group(prompt, responses, "mismatched")


def derangement(prompts: Sequence[str], seed: int) -> list[int] | None:
    """For each unit the index of a unit with another prompt; seeded, whatever the batches will be.

    Units of one prompt are put side by side and everybody looks as far ahead as the largest prompt has units: no one
    then meets the own prompt, and every unit is borrowed from exactly once. Where one prompt owns more than half of
    the units, those beyond the others' number share partners.

    Returns None where all prompts are the same.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        groups[prompt].append(i)
    if len(groups) < 2:
        return None
    names = sorted(groups)
    shuffled = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    order = [i for k in shuffled for i in groups[names[k]]]
    shift = max(map(len, groups.values()))
    partner = [0] * len(order)
    for place, i in enumerate(order):
        other = order[(place + shift) % len(order)]
        if prompts[other] == prompts[i]:
            others = [j for j in order if prompts[j] != prompts[i]]
            other = others[place % len(others)]
        partner[i] = other
    return partner
