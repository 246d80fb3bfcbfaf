"""What an evaluation measures: held-out pairs by log-probs, KL by samples, texts by rewards and by their health."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from attrs import evolve, frozen
from tqdm import tqdm

from upo.data.batch import PairedBatch
from upo.data.control import control_ids
from upo.data.example import Example, Response, prompt_key
from upo.data.layout import Tokens, lay_out
from upo.data.report import DataReport
from upo.data.samplers import StepSampler
from upo.data.tokenize import Encoder, fit
from upo.logps import ResponseLogps
from upo.metrics.intervals import bootstrap, wilson
from upo.metrics.text import distinct_n, repetition
from upo.policy import Policy
from upo.rewards.annotate import annotate
from upo.rewards.base import Reward, fit_all

if TYPE_CHECKING:
    from upo.data.module import PreferenceData
    from upo.methods.base import Method


INTERVALS = ("win_rate", "objective", "rewards/", "kl")
"""Beginnings of the per-prompt values whose means get an interval."""


@frozen
class Texts:
    """One response to each of the evaluation's prompts, from one writer."""

    texts: list[str]
    tokens: list[int]
    """Length of each, EOS included."""
    ended: list[bool]
    """Whether EOS closed it."""


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


def pairs_of(examples: Sequence[Example], data: "PreferenceData", encoder: Encoder) -> list[Tokens]:
    """Held-out pairs, cut and dropped as in a pairwise method's validation, whatever the method eats."""
    views = [pair for example in examples for pair in PairedBatch.views(example, data.max_pairs_per_prompt)]
    report = DataReport()
    units = [
        fit(
            tokens,
            max_length=data.max_length,
            max_response=data.max_response,
            overlong=data.overlong,
            bos=encoder.bos,
            report=report,
        )
        for tokens in encoder.encode(views, report)
    ]
    return [unit for unit in units if unit is not None and not PairedBatch.contradicts(unit)]


@torch.no_grad()
def log_probs(
    policy: Policy, reference: Policy | None, units: Sequence[Tokens], data: "PreferenceData", title: str
) -> ResponseLogps:
    """Log-probs of all responses under policy and reference, on the CPU; prompt_index counts the units.

    Args:
        units: their prompts end with the policy's control token, where it has one; the reference reads its own there.
    """
    costs = [unit.cost for unit in units]
    plan = StepSampler(
        costs,
        units_per_step=len(units),
        tokens_per_microbatch=data.tokens_per_microbatch,
        shuffle=False,
        seed=0,
    ).plan(list(range(len(units))))
    first = [0]
    for unit in units:
        first.append(first[-1] + len(unit.responses))
    logps, reference_logps = torch.zeros(first[-1]), torch.zeros(first[-1])
    device = next(policy.parameters()).device
    known = [control_ids(model.tokenizer) for model in (policy, reference) if model is not None]
    for indices in tqdm(plan.micro_batches, desc=title, unit="batch", leave=False, disable=None):
        row_tokens = data.tokens_per_microbatch
        batch = lay_out([units[i] for i in indices], data.layout, row_tokens=row_tokens, pad_id=0).to(device)
        places = torch.tensor([k for i in indices for k in range(first[i], first[i + 1])])
        logps[places] = policy(batch)["logps"].float().cpu()
        if reference is not None:
            if known[0] != known[1]:
                own = [_behind(units[i], *known) for i in indices]
                batch = lay_out(own, data.layout, row_tokens=row_tokens, pad_id=0).to(device)
            reference_logps[places] = reference(batch)["logps"].float().cpu()
    return ResponseLogps(
        logps,
        torch.tensor([len(r) for unit in units for r in unit.responses]),
        torch.tensor([i for i, unit in enumerate(units) for _ in unit.responses]),
        None if reference is None else reference_logps,
    )


def _behind(unit: Tokens, control: list[int], other: list[int]) -> Tokens:
    """A unit behind another control token than the one its prompt ends with; both may be empty."""
    return evolve(unit, prompt=[*unit.prompt[: len(unit.prompt) - len(control)], *other])


def pair_wins(method: "Method", logps: ResponseLogps) -> dict[str, list[float]]:
    """For each pair 1 where its chosen response is ahead, 0.5 for a tie: by three yardsticks.

    `rewards/accuracies`: by the method's implicit reward, or, where it defines none, by the log-ratio.
    `ranking/accuracies`: by the policy's summed log-probs (Chen et al. 2024, arXiv 2405.19534), `..._mean` by
    log-probs a token.
    """
    yardsticks = {"ranking/accuracies": logps.logps, "ranking/accuracies_mean": logps.mean}
    try:
        yardsticks["rewards/accuracies"] = method.reward(logps)
    except NotImplementedError:
        if logps.reference_logps is not None:
            yardsticks["rewards/accuracies"] = logps.logratio
    return {name: (0.5 * (1 + (x[0::2] - x[1::2]).sign())).tolist() for name, x in yardsticks.items()}


def chosen_texts(examples: Sequence[Example], encoder: Encoder) -> Texts | None:
    """The data's preferred response to each prompt; None where some prompt has none (unpaired data)."""
    pairs = [PairedBatch.views(example, 1) for example in examples]
    if not all(pairs):
        return None
    texts = [pair[0].responses[0].text for pair in pairs]
    return Texts(texts, [len(ids) for ids in encoder.responses(texts)], [True] * len(texts))


def measured(
    examples: Sequence[Example], writers: Mapping[str, Texts], rewards: Mapping[str, Reward]
) -> dict[str, list[dict[str, float]]]:
    """By writer, for each prompt: every reward of the text, its words, tokens, repetition, and whether it ended."""
    written = [
        example.with_responses(tuple(Response(w.texts[i]) for w in writers.values()))
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
        for k, (name, w) in enumerate(writers.items())
    }


def fit_rewards(rewards: Mapping[str, Reward], data: "PreferenceData") -> None:
    """Lets those rewards see the data that need it and were neither trained with nor read from a checkpoint."""
    if any(reward.unfitted for reward in rewards.values()):
        fit_all(rewards, *both_sides(data), data.rewards_cache)


def distinct_prompts(examples: Sequence[Example], number: int, seed: int) -> list[Example]:
    """At most `number` examples of different prompts, in an order that depends on the seed and on the prompts alone.

    Where a prompt has several examples, the first with a preference stands for it.
    """
    by_prompt: dict[str, Example] = {}
    for example in examples:
        key = prompt_key(example.prompt)
        if key not in by_prompt or (not PairedBatch.views(by_prompt[key], 1) and PairedBatch.views(example, 1)):
            by_prompt[key] = example

    def place(key: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()

    return [by_prompt[key] for key in sorted(by_prompt, key=place)[:number]]


def derive(values: dict[str, list[dict[str, float]]], weights: dict[str, float]) -> None:
    """Adds the objective and who wins, prompt by prompt."""
    for own in (x for side in values.values() for x in side):
        if weights:
            own["objective"] = sum(w * own[f"rewards/{name}"] for name, w in weights.items())
    for name, other in (("policy", "chosen"), ("reference", "chosen"), ("policy", "reference")):
        if name in values and other in values and "rewards/judge" in values[name][0]:
            for a, b in zip(values[name], values[other], strict=True):
                margin = a["rewards/judge"] - b["rewards/judge"]
                a[f"win_rate_vs_{other}"] = 0.5 if margin == 0 else float(margin > 0)


def text_figures(values: dict[str, list[dict[str, float]]], texts: dict[str, list[str]]) -> dict[str, float]:
    """Means over prompts by writer, with intervals for what is compared."""
    figures: dict[str, float] = {}
    for writer, rows in values.items():
        for name in rows[0]:
            column = [row[name] for row in rows]
            if name.startswith(INTERVALS):
                interval = wilson(column) if name.startswith("win_rate") else bootstrap(column)
                figures |= interval.named(f"{writer}/{name}")
            else:
                figures[f"{writer}/{name}"] = sum(column) / len(column)
        figures |= {f"{writer}/distinct_{n}": distinct_n(texts[writer], n) for n in (1, 2)}
    return figures


def accuracies(wins: dict[str, list[float]], pairs: Sequence[Tokens]) -> dict[str, float]:
    """Shares of pairs won, with intervals over prompts."""
    groups = [prompt_key(unit.example.prompt) for unit in pairs]
    return {k: v for name, x in wins.items() for k, v in wilson(x, groups).named(f"val/{name}").items()}
