"""Small tokenizers, models and units that many tests share; everything is made here, nothing is downloaded."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from attrs import evolve
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast

from upo.data.batch import Batch
from upo.data.example import Example, Response
from upo.data.layout import Responses, collate_responses
from upo.data.lines import Row
from upo.data.partners import with_partners
from upo.data.report import SourceReport
from upo.data.rounds import Split
from upo.data.sources import hh
from upo.data.steps import StepData
from upo.data.units import Group, Unit
from upo.data.views import View
from upo.models.model_config import known_fields
from upo.models.policy import Policy

CORPUS = (
    "\n\nHuman: How do I bake bread?\n\nAssistant: Mix flour, water, salt and yeast, then wait for an hour.",
    "\n\nHuman: Why is the sky blue?\n\nAssistant: Air scatters the blue part of the light more than the red part.",
    "user says hello and the assistant answers that it is happy to help with whatever there is to do today",
)

PAIRS = (
    ("How do I bake bread?", "Mix flour, water and yeast.", "I do not know."),
    ("Why is the sky blue?", "Air scatters blue light more than red light.", "Because it is."),
    ("Name a colour.", "Green.", "Seven."),
    ("What is two and two?", "Four.", "Two and two are five, as everybody knows."),
    ("Say hello.", "Hello there!", "No."),
    ("Who wrote Hamlet?", "William Shakespeare wrote it.", "A monkey."),
    ("Where is Paris?", "In France, on the Seine.", "It is on the Moon, next to Rome."),
    ("Can cats swim?", "They can, but few of them like it.", "Cats are fish."),
)
"""Prompt, chosen, rejected."""

SHAPES = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 48},
    "qwen2": {"num_key_value_heads": 2, "intermediate_size": 48},
    "qwen3": {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8},
    "gemma": {"num_key_value_heads": 1, "intermediate_size": 48, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8, "query_pre_attn_scalar": 8}
    | {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0},
    "granite": {"num_key_value_heads": 2, "intermediate_size": 48, "logits_scaling": 0.5},
    "cohere": {"num_key_value_heads": 2, "intermediate_size": 48, "logit_scale": 2.0},
    "mistral": {"num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": None, "head_dim": 8},
    "gpt_neox": {"intermediate_size": 48},
    "gpt2": {},
    "phi": {"intermediate_size": 48},
}
"""What each architecture's config needs beyond the common part.

Phi has a bias in its head; Granite divides its logits, Cohere multiplies them, Gemma 2 caps them, and its scores too.
"""


def tokenizer(
    chat_template: str | None = None, bos: bool = False, prefix_space: bool = False, pad: str = "<|pad|>"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the spot; `bos` makes it put BOS before every text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=special)
    )
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token=pad,
        chat_template=chat_template,
    )


def policy(kind: str = "llama", dtype: str = "float32", seed: int = 0, **config) -> Policy:
    """A random model; its weights are large enough that positions, masks and prompts matter."""
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    common = {"initializer_range": 0.2, **shape}
    if kind in CONFIG_MAPPING:  # some have other names for these, and fields that a config lacks are refused
        known = known_fields(CONFIG_MAPPING[kind]())
        common = {name: value for name, value in common.items() if name in known}
    fields = {"model_type": kind, **common, **SHAPES.get(kind, {}), **config}
    made = Policy(config=fields, tokenizer="tiny.tokenizer", dtype=dtype)
    torch.manual_seed(seed)
    made.build()
    for name, parameter in made.model.named_parameters():
        if name.endswith("bias"):  # initialised with 0, which would hide a forgotten one
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def unit(prompt: Sequence[int], *responses: Sequence[int], **fields) -> Unit:
    """A unit of made-up token ids; the responses' texts and annotations do not matter."""
    example = Example(" ".join(map(str, prompt)), tuple(Response(str(r), **fields) for r in responses), source="made")
    return Unit.of(list(prompt), tuple(list(r) for r in responses), example)


def units(lengths: Sequence[tuple[int, Sequence[int]]], seed: int = 0, vocabulary: int = 300) -> list[Unit]:
    """Units of random ids from (length of the prompt, lengths of the responses)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(3, vocabulary, (n,), generator=generator).tolist()

    return [unit(draw(p), *(draw(r) for r in responses)) for p, responses in lengths]


def groups_of(units: Sequence[Unit]) -> list[Group]:
    """All groups of the units, one behind the other."""
    return [group for unit in units for group in unit.groups]


def arrange(units: Sequence[Unit], layout: str = "packed") -> Responses:
    return collate_responses(groups_of(units), layout, row_tokens=64, pad_id=0)


def examples_of(view: View, example: Example, max_pairs: int) -> list[Example]:
    """The own groups of the drafts that a view makes of an example."""
    return [draft.example for draft in view.drafts(example, max_pairs)]


def split_of(
    units: Sequence[Unit], view: View, *, seed: int = 0, max_length: int = 64, rewards: Sequence[str] = ()
) -> Split:
    """Units with the columns that a view and auxiliary rewards give them, and with partners."""
    measured = [{name: [r.rewards[name] for r in u.example.responses] for name in rewards} for u in units]
    units = [evolve(u, columns={**u.columns, **m}) for u, m in zip(units, measured, strict=True)]
    return Split.of(with_partners(units, view, seed, max_length), view)


def data_of(
    units: Sequence[Unit],
    view: View,
    *,
    layout: str = "packed",
    tokens_per_microbatch: int = 64,
    pad_id: int = 0,
    seed: int = 0,
    max_length: int = 64,
    rewards: Sequence[str] = (),
) -> StepData:
    split = split_of(units, view, seed=seed, max_length=max_length, rewards=rewards)
    return StepData(split, layout=layout, tokens_per_microbatch=tokens_per_microbatch, pad_id=pad_id, rewards=rewards)


def batch_of(units: Sequence[Unit], view: View, **options) -> Batch:
    """One micro-batch of all units."""
    return data_of(units, view, **options).batch(range(len(units)))


def triples(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
    """HH's pairs with a gold response before them."""
    for example in hh(rows, report):
        chosen, rejected = example.responses
        yield example.with_responses((Response(chosen.text + " Really.", rank=-1), chosen, rejected))


def soft_pairs(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
    """HH's pairs with soft labels of .7 to 1."""
    for i, example in enumerate(hh(rows, report)):
        yield evolve(example, soft_label=0.7 + 0.1 * (i % 4))


def scored_pairs(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
    """HH's pairs with scores; the gap differs from pair to pair."""
    for i, example in enumerate(hh(rows, report)):
        chosen, rejected = example.responses
        yield example.with_responses((evolve(chosen, score=2.0 + i), evolve(rejected, score=1.0)))


def scored_alone(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
    """One response of each of HH's pairs, with a score: chosen and rejected ones by turns."""
    for i, example in enumerate(hh(rows, report)):
        yield example.with_responses((Response(example.responses[i % 2].text, score=1.0 - i % 2),))


def scored_lists(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
    """HH's pairs as scored lists, every other one of three."""
    for i, example in enumerate(hh(rows, report)):
        chosen, rejected = (Response(r.text, score=score) for r, score in zip(example.responses, (2, 1), strict=True))
        worst = (Response("No.", score=0),) if i % 2 else ()
        yield example.with_responses((rejected, chosen, *worst))


def explained(rows: Iterable[Row], report: SourceReport) -> Iterator[Example]:
    """HH's pairs with a rationale."""
    for example in hh(rows, report):
        yield evolve(example, rationale=f"It says {example.responses[0].text[:20]}")


def plain_logps(policy: Policy, prompt: list[int], response: list[int]) -> Tensor:
    """Log-probs of a response's tokens, one sequence alone, through Hugging Face's own logits."""
    logits = policy.model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
    at = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide[at].log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]
