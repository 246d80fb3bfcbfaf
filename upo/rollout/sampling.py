"""Responses that a model writes itself: batched sampling whose result does not depend on the batches.

Every response owns a row of uniform random numbers, drawn from `seed` beforehand; token t is the inverse of the
distribution function at the t-th of them. So no global random state is read or changed, two models that sample with
the same seed are compared on common random numbers, and batch size and order change nothing but rounding: a padded
batch gives the same logits to about 1e-6, which now and then moves a draw that falls between two tokens.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from attrs import asdict, frozen
from jaxtyping import Float, Int
from torch import Tensor

from upo.data.control import never_written
from upo.data.example import Prompt
from upo.data.tokenize import Encoder
from upo.errors import UserError
from upo.models.gathered import gathered
from upo.models.model_config import context_of
from upo.rollout.ends import stop_tokens, up_to
from upo.rollout.vllm import Backend, Write, engine
from upo.runtime.collectives import ALONE, Ranks, gather_objects

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from upo.models.policy import Policy


@frozen
class Completion:
    """One response as the model wrote it."""

    prompt_ids: list[int]
    """What the model saw."""
    ids: list[int]
    """The sampled tokens, with the one that ended the response where one came."""
    text: str
    """The response without special tokens."""
    finish_reason: Literal["stop", "length"]
    """`stop`: a token that ends responses came before the limit; `length`: it was cut there."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Completion":
        """One that an interrupted call left; `ended` stood for the reason in earlier versions."""
        values = dict(values)
        reason = "stop" if values.pop("ended", False) else "length"
        return cls(**{"finish_reason": reason, **values})


def sample(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    *,
    responses: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 0.95,
    batch_size: int = 128,
    seed: int = 0,
    progress: str | None = None,
    kept: MutableMapping[str, Any] | None = None,
    backend: Backend = "transformers",
    ranks: Ranks = ALONE,
) -> list[list[Completion]]:
    """`responses` continuations of each prompt, in the order of the prompts.

    A response ends with the tokenizer's EOS, a token that the model's generation config stops at, or the one that
    closes a turn in the chat template (`stop_tokens`). A prompt that leaves no room for `max_new_tokens` in the model's
    context is cut on the left. Tokens that no text holds (`never_written`) are not drawn.

    Args:
        max_new_tokens: limit of a response, with the token that ends it.
        temperature: 0 takes the likeliest token.
        top_p: nucleus in (0, 1]; 1 samples from the whole distribution.
        batch_size: responses at a time; changes speed and memory only.
        seed: result i, k depends on it, on i, k, `responses` and `max_new_tokens`, and on prompt i.
        progress: title of the progress bar; none where null or where the output is not a terminal.
        kept: what an interrupted call with the same arguments left there; each batch is added when it is done, and one
            that is there as a whole is not sampled again.
        backend: vllm is faster on GPUs, where it is installed; it draws from the same distribution, by other random
            numbers. It is untested on real GPUs.
        ranks: the ranks that share the work, each with the whole model; each gets all responses.
    """
    from tqdm import tqdm

    encoder, context = Encoder(tokenizer), context_of(model.config)
    prompt_ids = [_shorten(ids, context, max_new_tokens, encoder.bos) for ids in encoder.prompts(prompts)]
    rows = [(i, k) for i in range(len(prompts)) for k in range(responses)]
    rows.sort(key=lambda row: -len(prompt_ids[row[0]]))
    rows = rows[ranks.rank :: ranks.size]
    stops = stop_tokens(model, encoder)
    never = never_written(tokenizer, stops)
    settings = {"temperature": temperature, "top_p": top_p, "never": never, "stops": stops}
    if backend == "vllm":
        whole = settings | {"max_new_tokens": max_new_tokens, "seed": seed}
        opened = engine(model, tokenizer, longest=max(map(len, prompt_ids), default=0), **whole)
    else:
        uniform = torch.rand(len(prompts), responses, max_new_tokens, generator=torch.Generator().manual_seed(seed))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else encoder.eos
        opened = _transformers(model, uniform, pad, **settings)
    sampled: dict[tuple[int, int], Completion] = {}
    hidden = None if progress else True  # tqdm's None: a bar on terminals only
    bar = tqdm(total=len(rows), desc=progress, unit="response", leave=False, disable=hidden)
    with bar, opened as write:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            if kept is not None and all(f"{i}.{k}" in kept for i, k in batch):
                sampled |= {(i, k): Completion.of(kept[f"{i}.{k}"]) for i, k in batch}
                bar.update(len(batch))
                continue
            ids = [up_to(stops, x) for x in write(batch, [prompt_ids[i] for i, _ in batch])]
            ended = [x[-1] in stops for x in ids]
            texts = _texts(encoder, [x[:-1] if end else x for x, end in zip(ids, ended, strict=True)])
            for row, own, end, text in zip(batch, ids, ended, texts, strict=True):
                text = text if isinstance(prompts[row[0]], str) else text.strip()  # templates add their own space
                sampled[row] = Completion(prompt_ids[row[0]], own, text, "stop" if end else "length")
            if kept is not None:
                kept.update({f"{i}.{k}": asdict(sampled[i, k]) for i, k in batch})
            bar.update(len(batch))
    every = {row: own for part in gather_objects(sampled, ranks) for row, own in part.items()}
    return [[every[i, k] for k in range(responses)] for i in range(len(prompts))]


def sample_policy(policy: "Policy", prompts: Sequence[Prompt], **settings: Any) -> list[list[Completion]]:
    """`sample` from a policy, whose model may be in shards (then every rank calls this) or shared with another one."""
    with policy.active(), gathered(policy):
        return sample(policy.model, policy.tokenizer, prompts, **settings)


def draw(
    logits: Float[Tensor, "N V"], uniform: Float[Tensor, "N"], *, temperature: float, top_p: float
) -> Int[Tensor, "N"]:
    """One token id a row from softmax(logits / temperature), cut to its nucleus (Holtzman et al. 2020).

    Args:
        uniform: a random number in [0, 1) for each row; the draw is a function of it and of the logits alone.
        temperature: 0 takes the likeliest token.
        top_p: the smallest set of likeliest tokens whose probability reaches this is drawn from.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probability, token = (logits.float() / temperature).softmax(-1).sort(descending=True, stable=True)
    mass = probability.cumsum(-1)
    kept = (mass - probability < top_p).sum(-1, keepdim=True)
    total = mass.gather(-1, kept - 1)
    place = (mass <= uniform[:, None] * total).sum(-1, keepdim=True).minimum(kept - 1)
    return token.gather(-1, place)[:, 0]


class _Draw:
    """Logits processor that leaves `generate` no choice: only the drawn token has a finite score."""

    def __init__(self, uniform: Tensor, prompt_width: int, temperature: float, top_p: float, never: list[int]):
        self.uniform, self.prompt_width = uniform, prompt_width
        self.temperature, self.top_p, self.never = temperature, top_p, never

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = self.uniform[:, input_ids.shape[1] - self.prompt_width].to(scores.device)
        scores[:, self.never] = -torch.inf
        token = draw(scores, uniform, temperature=self.temperature, top_p=self.top_p)
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)


@contextmanager
def _transformers(
    model: "PreTrainedModel",
    uniform: Tensor,
    pad: int,
    *,
    stops: set[int],
    temperature: float,
    top_p: float,
    never: list[int],
) -> Iterator[Write]:
    """Sampling by the model's own `generate`.

    Args:
        uniform: a random number for each token [prompts, responses, max_new_tokens].
    """

    def write(rows: Sequence[tuple[int, int]], prompts: list[list[int]]) -> list[list[int]]:
        numbers = torch.stack([uniform[row] for row in rows])
        choose = _Draw(numbers, max(map(len, prompts)), temperature, top_p, never)
        return _continue(model, prompts, choose, pad)

    with _plain_generation(model, pad, stops):
        yield write


@torch.no_grad()
def _continue(model: "PreTrainedModel", prompts: list[list[int]], choose: _Draw, pad: int) -> list[list[int]]:
    """New token ids behind each prompt, padded behind its end; the prompts are padded on the left."""
    width = choose.prompt_width
    ids = torch.tensor([[pad] * (width - len(x)) + x for x in prompts])
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in prompts])
    out = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=choose.uniform.shape[1],
        do_sample=False,
        logits_processor=[choose],
        synced_gpus=False,  # each rank has its own prompts, and the whole model
        use_cache=True,
    )
    return out[:, width:].tolist()


@contextmanager
def _plain_generation(model: "PreTrainedModel", pad: int, stops: set[int]):
    """Model in eval mode, without the habits of its generation config (penalties, temperatures)."""
    from transformers import GenerationConfig

    habits, training = model.generation_config, model.training
    model.generation_config = GenerationConfig(pad_token_id=pad, eos_token_id=sorted(stops))
    model.eval()
    try:
        yield
    finally:
        model.generation_config = habits
        model.train(training)


def _shorten(ids: list[int], context: int | None, max_new_tokens: int, bos: int | None) -> list[int]:
    """A prompt with room for its response, cut on the left as `truncate_prompt_left` does."""
    if not ids:
        raise UserError("an empty prompt needs a tokenizer with a BOS token; give prompts with text")
    if context is None or len(ids) + max_new_tokens <= context:
        return ids
    room = context - max_new_tokens
    if room < 2:
        raise UserError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt in the model's context of {context} tokens"
        )
    head = ids[:1] if bos is not None else []
    return head + ids[len(ids) - room + len(head) :]


def _texts(encoder: Encoder, ids: list[list[int]]) -> list[str]:
    """Token ids as text that `encoder.responses` turns into the same ids: with the space they begin with."""
    anchor = encoder._ids([encoder.anchor])[0] if encoder.anchor else []
    start, *texts = encoder.tokenizer.batch_decode(
        [anchor, *(anchor + x for x in ids)], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.removeprefix(start) for text in texts]
