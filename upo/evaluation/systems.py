"""Who answers an evaluation's prompts: models by sampling, the data's chosen responses, another run's samples."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from upo.data.example import Example, prompt_key
from upo.data.templates import inherit_options, options_of, with_template
from upo.data.tokenize import Encoder
from upo.data.views import pairs_of
from upo.errors import UserError
from upo.runtime.collectives import ALONE, Ranks
from upo.runtime.run_folder import RunPaths

if TYPE_CHECKING:
    from upo.models.policy import Policy
    from upo.rollout.sampling import Completion

PARTIAL = ".evaluation.partial*.jsonl"
"""Responses and verdicts of an evaluation that is not finished, in the folder where its files will go."""


def partial_file(folder: Path, rank: int = 0) -> Path:
    """The file of this kind that a rank writes."""
    return folder / PARTIAL.replace("*", f".rank{rank}" if rank else "")


@frozen
class Texts:
    """One response to each of the evaluation's prompts, from one system."""

    texts: list[str]
    tokens: list[int]
    """Length of each, with the token that ends it."""
    ended: list[bool]
    """Whether such a token closed it."""


def sampled(
    policy: "Policy", name: str, asked: Sequence[Example], folder: Path, ranks: Ranks = ALONE, **settings: Any
) -> "list[Completion]":
    """One response a prompt; those that an interrupted evaluation in `folder` left are not sampled again.

    Args:
        name: of the system, for the progress bar.
        ranks: the ranks that share the work; each gets all responses.
        settings: of `upo.rollout.sampling.sample`.
    """
    from upo.evaluation.kept import Kept
    from upo.models.reference_source import weights_hash
    from upo.rollout.ends import stop_tokens, warn_unended
    from upo.rollout.sampling import sample_policy

    prompts = [example.prompt for example in asked]
    encoder = Encoder(policy.tokenizer)
    decided: list[Any] = [weights_hash(policy), settings, encoder.prompts(prompts)]
    if further := sorted(stop_tokens(policy.model, encoder) - {encoder.eos}):
        decided.append(further)
    what = json.dumps(decided, sort_keys=True)
    kept = Kept(partial_file(folder, ranks.rank), hashlib.sha256(what.encode()).hexdigest())
    title = f"{name}'s responses"
    written = sample_policy(policy, prompts, **settings, progress=title, kept=kept, ranks=ranks)
    found = [group[0] for group in written]
    warn_unended(f"the {name}", found, settings["max_new_tokens"])
    return found


def comparison_model(policy: "Policy", path: str) -> "Policy":
    """Another model in the policy's place.

    Raises:
        UserError: its vocabulary differs by more than added tokens.
    """
    from upo.models.checkpoint import load_model
    from upo.models.policy import Policy

    model, tokenizer = load_model(path)
    known, others = (t.get_vocab().items() for t in (policy.tokenizer, tokenizer))
    if not (known <= others or others <= known):
        raise UserError(f"{path} has another vocabulary than the policy; name a reference that shares it")
    inherit_options(with_template(tokenizer, policy.text["chat_template"]), options_of(policy.tokenizer))
    other = Policy(path, tokenizer=path, **policy.text)
    other.tokenizer = tokenizer
    other.adopt(model)
    return other.requires_grad_(False).eval()


def of_samples(drawn: "Sequence[Completion]") -> Texts:
    """Texts as a model wrote them."""
    return Texts([s.text for s in drawn], [len(s.ids) for s in drawn], [s.finish_reason == "stop" for s in drawn])


def systems_of(
    drawn: "Mapping[str, Sequence[Completion]]", opponent: Texts | None, asked: Sequence[Example], encoder: Encoder
) -> dict[str, Texts]:
    """Everyone who answers, by name: models, the other run as `rival`, the data as `chosen`."""
    systems = {name: of_samples(own) for name, own in drawn.items()}
    others = {"rival": opponent, "chosen": chosen_texts(asked, encoder)}
    return systems | {name: texts for name, texts in others.items() if texts is not None}


def chosen_texts(examples: Sequence[Example], encoder: Encoder) -> Texts | None:
    """The data's preferred response to each prompt; None where some prompt has none (unpaired data)."""
    pairs = [pairs_of(example, 1) for example in examples]
    if not all(pairs):
        return None
    texts = [pair[0].responses[0].shown for pair in pairs]
    return Texts(texts, [len(ids) for ids in encoder.responses(texts)], [True] * len(texts))


def opponent_texts(run: Path, examples: Sequence[Example], settings: Mapping[str, Any]) -> Texts:
    """What another run's policy answered to the same prompts when it was evaluated.

    Args:
        run: its run folder, or the folder that an evaluation wrote to.
        settings: of this evaluation's sampling; the opponent's must be equal.

    Raises:
        UserError: not evaluated, not for all of these prompts, or sampled in another way.
    """
    try:
        lines = [json.loads(line) for line in RunPaths(run).samples.read_text().splitlines()]
        content = json.loads(RunPaths(run).evaluation.read_text())
    except (OSError, ValueError):
        raise UserError(f"{run} holds no finished evaluation; run first: python -m upo.evaluate {run}") from None
    if unlike := [k for k, v in settings.items() if content["settings"].get(k) != v]:
        theirs = ", ".join(f"{k}={content['settings'].get(k)}" for k in unlike)
        raise UserError(f"{run} was evaluated with {theirs}; evaluate both runs with the same settings")
    texts = {line["prompt"]: line["policy"] for line in lines}
    measured = {row["prompt"]: row["policy"] for row in content["prompts"]}
    keys = [prompt_key(example.prompt) for example in examples]
    if missing := [key for key in keys if key not in texts or key not in measured]:
        raise UserError(
            f"{run} was evaluated on other prompts: {len(missing)} of {len(keys)} are missing; evaluate both on the "
            "same held-out data, with the same number of prompts and seed"
        )
    return Texts(
        [texts[key] for key in keys],
        [int(measured[key]["tokens"]) for key in keys],
        [bool(measured[key]["ended"]) for key in keys],
    )
