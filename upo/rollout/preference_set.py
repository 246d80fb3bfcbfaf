"""Preference data that a model writes itself: prompts -> sampled responses -> scores -> pairs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from upo.data.example import Prompt, prompt_key
from upo.data.rewards import Reward, checked
from upo.data.source import Source
from upo.errors import UserError
from upo.rollout.vllm import Backend, check_vllm
from upo.runtime.atomic_files import write_text
from upo.runtime.seeding import seed_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROUNDS = 20
"""How often a model is asked for more openings before it counts as out of ideas."""


def generate(
    model: str,
    judge: Reward,
    out: Path,
    prompts: Source | None = None,
    self_prompts: PositiveInt | None = None,
    prompt_tokens: PositiveInt = 24,
    responses: PositiveInt = 8,
    max_new_tokens: PositiveInt = 48,
    temperature: NonNegativeFloat = 1.0,
    top_p: NonNegativeFloat = 0.95,
    margin: NonNegativeFloat = 0.0,
    batch_size: PositiveInt = 256,
    backend: Backend = "transformers",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Writes preference pairs of a model's own responses: it answers each prompt several times, a reward judges.

    One JSON record a prompt: {"prompt", "responses": [{"text", "score"}, ...], "chosen", "rejected"}; the last two,
    in TRL's format, are the best and the worst response, left out where their scores differ by no more than `margin`.
    A response that reaches `max_new_tokens` ends there: train with `max_response` of the same number and
    `overlong: truncate_response`, so that it is not closed by an EOS that the model never wrote.
    Read the file with `data.sources: [{name: trl, path: FILE}]`.

    Args:
        model: the model that answers: run folder, .ckpt file, Hugging Face folder or hub name.
        judge: the reward that scores a response, higher is better: a class of upo.rewards, e.g. Sentiment.
        out: the .jsonl file to write.
        prompts: a data source whose prompts are taken, e.g. `--prompts.name hh --prompts.path Anthropic/hh-rlhf`.
        self_prompts: in place of `prompts`: the number of distinct openings that the model writes itself, to continue.
        prompt_tokens: length of such an opening in tokens, before it is cut back to its last whole word.
        responses: number of responses to each prompt.
        max_new_tokens: largest number of tokens of a response, with the token that ends it.
        temperature: sampling temperature; 0 always takes the most probable token.
        top_p: nucleus sampling: responses are drawn from the most probable tokens that together have this probability,
            in (0, 1]; openings are drawn from all tokens.
        margin: a prompt gives a pair where the scores of its best and its worst response differ by more than this.
        batch_size: number of responses sampled at a time; changes speed and memory only.
        backend: what samples the responses. vllm has to be installed; it draws from the same distribution with other
            random numbers, and is untested on GPUs.
        seed: the same seed gives the same file.
        overwrite: replace the file if it exists.
    """
    if (prompts is None) == (self_prompts is None):
        raise UserError("give either --prompts.name (a data source) or --self_prompts (a number)")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; name another file or add --overwrite")
    check_vllm(backend)
    from upo.models.checkpoint import load_model
    from upo.rollout.ends import warn_unended
    from upo.rollout.sampling import sample

    lm, tokenizer = load_model(model)
    if prompts is None:
        options = {"batch_size": batch_size, "backend": backend}
        asked: list[Prompt] = list(openings(lm, tokenizer, self_prompts or 0, prompt_tokens, seed, **options))
    else:
        asked = read_prompts(prompts, tokenizer)
    written = sample(
        lm,
        tokenizer,
        asked,
        responses=responses,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        batch_size=batch_size,
        backend=backend,
        seed=seed,
        progress="responses",
    )
    warn_unended(model, [s for group in written for s in group], max_new_tokens)
    texts = [distinct([s.text for s in group]) for group in written]
    scores = judged(judge, asked, texts)
    records = [record(*parts, margin) for parts in zip(asked, texts, scores, strict=True)]
    write_text(out, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    pairs = sum("chosen" in r for r in records)
    number = sum(map(len, texts))
    mean = sum(map(sum, scores)) / max(number, 1)
    print(f"{out}: {len(records)} prompts, {number} distinct responses of mean score {mean:.3f}, {pairs} pairs")


def openings(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    number: int,
    tokens: int,
    seed: int,
    **options: Any,
) -> list[str]:
    """Distinct beginnings of texts that the model writes behind BOS, each up to a whole word.

    Args:
        options: further ones of `upo.rollout.sampling.sample`.

    Raises:
        UserError: the model repeats itself too often.
    """
    from upo.rollout.sampling import sample

    found: dict[str, None] = {}
    for round in range(ROUNDS):
        begun = sample(
            model,
            tokenizer,
            [""] * number,
            max_new_tokens=tokens,
            top_p=1.0,
            seed=seed_at(seed, round, places=ROUNDS),
            progress="openings",
            **options,
        )
        for (s,) in begun:
            text = s.text.strip() if s.finish_reason == "stop" else s.text.strip().rpartition(" ")[0]
            if text:
                found.setdefault(text)
        if len(found) >= number:
            return list(found)[:number]
    raise UserError(f"only {len(found)} of {number} openings of {tokens} tokens were distinct; raise --prompt_tokens")


def distinct(texts: list[str]) -> list[str]:
    """Texts in their order, without empty and repeated ones."""
    return list(dict.fromkeys(text for text in texts if text.strip()))


def read_prompts(source: Source, tokenizer: "PreTrainedTokenizerBase") -> list[Prompt]:
    """Distinct prompts of a data source, in its order, without those that the chat template cannot write.

    Raises:
        UserError: it can write none of them.
    """
    from upo.data.chat_format import ChatFormat
    from upo.data.report import DataReport

    every = list({prompt_key(e.prompt): e.prompt for e in source.examples(DataReport())}.values())
    writes = ChatFormat(tokenizer).writes
    found = [prompt for prompt in every if writes(prompt)]
    if left_out := len(every) - len(found):
        print(f"{left_out} of {len(every)} prompts are left out: the chat template cannot write them")
    if not found:
        raise UserError("the chat template can write none of these prompts; take a model whose template fits them")
    return found


def judged(judge: Reward, prompts: list[Prompt], texts: list[list[str]]) -> list[list[float]]:
    """The judge's score of each text."""
    from tqdm import tqdm

    name = type(judge).__name__
    bar = tqdm(list(zip(prompts, texts, strict=True)), desc=name, unit="prompt", leave=False, disable=None)
    return [checked(name, judge([prompt] * len(own), own), len(own)) for prompt, own in bar]


def record(prompt: Prompt, texts: list[str], scores: list[float], margin: float) -> dict[str, Any]:
    """The JSON record of one prompt."""
    plain = prompt if isinstance(prompt, str) else list(prompt)
    result: dict[str, Any] = {
        "prompt": plain,
        "responses": [{"text": t, "score": s} for t, s in zip(texts, scores, strict=True)],
    }
    if scores and max(scores) - min(scores) > margin:
        best, worst = texts[scores.index(max(scores))], texts[scores.index(min(scores))]
        if isinstance(prompt, str):
            return result | {"chosen": best, "rejected": worst}
        turns = {"chosen": best, "rejected": worst}
        return result | {k: [{"role": "assistant", "content": text}] for k, text in turns.items()}
    return result
