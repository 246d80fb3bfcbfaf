"""What an evaluation measures: log-probs of responses, texts by rewards and by their health; and on which prompts."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import stdev
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve
from torch.distributed.fsdp import FSDPModule

from upo.data.annotate import annotate
from upo.data.codec import TextCodec
from upo.data.control import control_ids
from upo.data.example import Example, Prompt, Response, prompt_key
from upo.data.layout import Responses
from upo.data.report import DataReport
from upo.data.rewards import Reward, fit_all
from upo.data.tokenize import Limits
from upo.data.units import Group, Unit
from upo.data.views import PairedView, pairs_of
from upo.errors import UserError
from upo.evaluation.systems import Texts
from upo.metrics.intervals import bootstrap, wilson
from upo.metrics.text import distinct_n, repetition
from upo.models.logps import ResponseLogps
from upo.models.policy import Policy
from upo.models.scoring import score
from upo.runtime.collectives import ALONE, Ranks

if TYPE_CHECKING:
    from upo.data.module import PreferenceData
    from upo.methods.common.base import Method


INTERVALS = ("win_rate", "objective", "rewards/", "kl")
"""Beginnings of the per-prompt values whose means get an interval."""


def accelerator() -> torch.device:
    """Where models are evaluated."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def held_out_examples(data: "PreferenceData") -> list[Example]:
    """The validation side of the data."""
    return data.held_out if hasattr(data, "held_out") else both_sides(data)[1]


def both_sides(data: "PreferenceData") -> tuple[list[Example], list[Example]]:
    """Training and validation examples, read again and not counted in the data report."""
    report, data.report = data.report, DataReport()
    try:
        return data.examples()
    finally:
        data.report = report


def held_out_pairs(examples: Sequence[Example], data: "PreferenceData", codec: TextCodec) -> list[Unit]:
    """Held-out pairs, cut and dropped as in a pairwise method's validation, whatever the method eats."""
    view = PairedView()
    drafts = [draft for example in examples for draft in view.drafts(example, data.max_pairs_per_prompt)]
    limits = Limits(data.max_length, data.max_response, data.overlong, codec.bos)
    units = codec.encode(drafts, limits, DataReport())
    return [unit for unit in units if unit is not None and not view.contradicts(unit)]


def log_probs(
    policy: Policy,
    reference: Policy | None,
    units: Sequence[Unit],
    data: "PreferenceData",
    title: str,
    by_token: bool = False,
    ranks: Ranks = ALONE,
) -> ResponseLogps:
    """Log-probs of all responses under policy and reference, on the CPU; prompt_index counts the units.

    Args:
        units: their prompts end with the policy's control token, where it has one; the reference reads its own there.
        by_token: adds to `outputs` what the distributions at the tokens say over the whole vocabulary: `entropy` of the
            policy and, beside a reference, `reverse_kl`, KL(policy || reference), both in nats.
        ranks: the ranks that share the work; each gets the whole result.
    """
    groups, against, wanted = [unit.groups[0] for unit in units], None, ("entropy",) if by_token else ()
    if reference is not None:
        own, other = (control_ids(model.tokenizer) for model in (policy, reference))
        against = reference, groups if own == other else [_behind(group, own, other) for group in groups]
        wanted = ("entropy", "reverse_kl") if by_token else ()
    found = score(policy, groups, wanted, against=against, title=title, **_budget(policy, data, ranks))
    lengths = torch.tensor([n for group in groups for n in group.scored_lengths])
    return ResponseLogps(
        found.pop("logps"),
        lengths,
        torch.tensor([i for i, group in enumerate(groups) for _ in group.responses]),
        found.pop("reference_logps", None),
        outputs=found,
        response_index=torch.repeat_interleave(lengths),
    )


def token_figures(logps: ResponseLogps) -> dict[str, list[float]]:
    """Of each response, from log-probs by token: `entropy`, a mean over its tokens in nats a token, and beside a
    reference `kl`, the sum of KL(policy || reference) over its tokens in nats.

    Where the policy wrote the responses by plain sampling, the mean of `kl` is an unbiased estimate of the KL between
    the two models' responses (up to their limit), never negative and of less variance than log-ratios; where a nucleus
    or a temperature decided, it is the same sum along the texts that were written so.
    """
    figures = {}
    if "reverse_kl" in logps.outputs:
        figures["kl"] = logps.sums(logps.outputs["reverse_kl"]).clamp(min=0).tolist()  # below 0 is rounding
    return figures | {"entropy": (logps.sums(logps.outputs["entropy"]) / logps.lengths).tolist()}


@torch.no_grad()
def rewards(
    method: "Method", logps: ResponseLogps, units: Sequence[Unit], data: "PreferenceData", ranks: Ranks = ALONE
) -> torch.Tensor | None:
    """The method's implicit reward of all responses [N], on the CPU; None where it defines none.

    Args:
        logps: those of `log_probs`, which are enough for most methods.
    """
    needs = method.needs
    if needs.reward is None:
        return None
    if not needs.reward:
        return method.reward(logps)

    def rewarded(responses: Responses, wanted: Collection[str]) -> dict[str, torch.Tensor]:
        return {"reward": method.reward(method.response_logps(responses, needs.for_reward))}

    groups, budget = [unit.groups[0] for unit in units], _budget(method.policy, data, ranks)
    return score(rewarded, groups, ("reward",), title="implicit rewards", **budget)["reward"]


def _budget(policy: Policy, data: "PreferenceData", ranks: Ranks) -> dict[str, Any]:
    """How, where and by whom units are scored."""
    device = accelerator() if isinstance(policy.holder, FSDPModule) else next(policy.parameters()).device
    return {"layout": data.layout, "max_tokens": data.tokens_per_microbatch, "device": device, "ranks": ranks}


def _behind(group: Group, control: list[int], other: list[int]) -> Group:
    """A group behind another control token than the one its prompt ends with; both may be empty."""
    return evolve(group, prompt=[*group.prompt[: len(group.prompt) - len(control)], *other])


def measured(
    examples: Sequence[Example], systems: Mapping[str, Texts], rewards: Mapping[str, Reward]
) -> dict[str, list[dict[str, float]]]:
    """By system, for each prompt: every reward of the text, its words, tokens, repetition, and whether it ended."""
    written = [
        example.with_responses(tuple(Response(w.texts[i]) for w in systems.values()))
        for i, example in enumerate(examples)
    ]
    annotated = annotate(written, rewards)
    return {
        name: [
            {f"rewards/{reward}": value for reward, value in annotated[i].responses[k].rewards.items()}
            | {
                "tokens": float(w.tokens[i]),
                "words": float(len(w.texts[i].split())),
                "repetition": repetition(w.texts[i]),
                "ended": float(w.ended[i]),
            }
            for i in range(len(examples))
        ]
        for k, (name, w) in enumerate(systems.items())
    }


def fit_rewards(rewards: Mapping[str, Reward], data: "PreferenceData") -> None:
    """Lets those rewards see the data that need it and were neither trained with nor read from a checkpoint."""
    if any(reward.unfitted for reward in rewards.values()):
        fit_all(rewards, *both_sides(data), data.rewards_cache)


def distinct_prompts(
    examples: Sequence[Example], number: int, seed: int, writes: Callable[[Prompt], bool] = lambda prompt: True
) -> list[Example]:
    """At most `number` examples of different prompts, in an order that depends on the seed and on the prompts alone.

    Where a prompt has several examples, the first with a preference stands for it.

    Args:
        writes: whether a prompt can be put to the model; those that cannot are left out, and a line says how many.

    Raises:
        UserError: none can.
    """
    by_prompt: dict[str, Example] = {}
    for example in examples:
        key = prompt_key(example.prompt)
        if key not in by_prompt or (not pairs_of(by_prompt[key], 1) and pairs_of(example, 1)):
            by_prompt[key] = example

    def place(key: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()

    asked, left_out = [], 0
    for key in sorted(by_prompt, key=place):
        if len(asked) == number:
            break
        if writes(by_prompt[key].prompt):
            asked.append(by_prompt[key])
        else:
            left_out += 1
    if left_out:
        print(f"{left_out} held-out prompts are left out: the chat template cannot write them")
    if by_prompt and not asked:
        raise UserError("the chat template can write no held-out prompt; set policy.chat_template to one that fits")
    if len(asked) < number:
        print(f"{number} prompts are asked for, and {len(asked)} are held out: raise data.validation for more")
    return asked


def objective(values: Mapping[str, list[dict[str, float]]], weights: Mapping[str, float]) -> None:
    """Adds the objective R = sum_i w_i r_i, prompt by prompt."""
    for own in (x for side in values.values() for x in side):
        if weights:
            own["objective"] = sum(w * own[f"rewards/{name}"] for name, w in weights.items())


def text_figures(values: Mapping[str, list[dict[str, float]]], texts: Mapping[str, list[str]]) -> dict[str, float]:
    """Means over prompts by system, with intervals for what is compared; `policy/kl` with its standard error too.

    A figure that some prompts lack (no verdict could be read) is a mean over the others.
    """
    figures: dict[str, float] = {}
    for system, rows in values.items():
        for name in dict.fromkeys(name for row in rows for name in row):
            column = [row[name] for row in rows if name in row]
            if name.startswith(INTERVALS):
                interval = wilson(column) if name.startswith("win_rate") else bootstrap(column)
                figures |= interval.named(f"{system}/{name}")
            else:
                figures[f"{system}/{name}"] = sum(column) / len(column)
            if name == "kl" and len(column) > 1:
                figures[f"{system}/kl_se"] = stdev(column) / len(column) ** 0.5
        figures |= {f"{system}/distinct_{n}": distinct_n(texts[system], n) for n in (1, 2)}
    return figures
