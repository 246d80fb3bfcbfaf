"""Chat formats of widely used model families: a template of the same structure each, and a small tokenizer for it.

The templates lie in data/templates. They are written for the tests from how the families' conversations look: what
opens and closes a turn, what the generation prompt is, what is refused. Token ids, vocabularies and most words are made
up.
"""

from pathlib import Path

from attrs import frozen
from tiny import CORPUS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "data" / "templates"
ANSWER = "Air scatters blue light."


@frozen
class Family:
    """How the conversations of one family look."""

    end: str
    """The token that closes an assistant's turn as its models write it."""
    scored: str
    """`ANSWER` as a scored response, that token included."""
    eos: str
    bos: str | None = None
    special: tuple[str, ...] = ()
    """Further special tokens."""
    plain: tuple[str, ...] = ()
    """Added tokens that are not special."""
    stops: tuple[str, ...] = ()
    """What the family's generation_config stops at."""
    system: bool = True
    """Whether there is a system role."""
    rstrip: bool = False
    """Whether special tokens swallow the white space behind them."""
    words: bool = False
    """Whether the tokenizer is like SentencePiece: a space before every text, pieces of words."""


IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
THINK = ("<think>", "</think>")
R1_BEGIN, R1_END = "<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>"
FAMILIES = {
    "llama2": Family("</s>", f" {ANSWER} </s>", "</s>", "<s>", words=True, stops=("</s>",)),
    "llama3": Family(
        "<|eot_id|>", f"{ANSWER}<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>",
        ("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
        stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "mistral": Family("</s>", f" {ANSWER}</s>", "</s>", "<s>", ("[INST]", "[/INST]"), words=True, stops=("</s>",)),
    "gemma": Family(
        "<end_of_turn>", f"{ANSWER}<end_of_turn>", "<eos>", "<bos>", ("<start_of_turn>", "<end_of_turn>"),
        stops=("<eos>", "<end_of_turn>"), system=False, words=True,
    ),
    "phi3": Family(
        "<|end|>", f"{ANSWER}<|end|>", "<|endoftext|>", "<s>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        stops=("<|endoftext|>", "<|assistant|>", "<|end|>"), rstrip=True, words=True,
    ),
    "qwen2": Family(
        "<|im_end|>", f"{ANSWER}<|im_end|>", "<|im_end|>", special=IM, plain=("<tool_call>", "</tool_call>"),
        stops=("<|im_end|>", "<|endoftext|>"),
    ),
    "chatml": Family("<|im_end|>", f"{ANSWER}<|im_end|>", "<|endoftext|>", special=IM, stops=("<|endoftext|>",)),
    "qwen3": Family(
        "<|im_end|>", f"<think>\n\n</think>\n\n{ANSWER}<|im_end|>", "<|im_end|>", special=IM, plain=THINK,
        stops=("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen35": Family(
        "<|im_end|>", f"\n</think>\n\n{ANSWER}<|im_end|>", "<|im_end|>", special=IM, plain=THINK,
        stops=("<|im_end|>", "<|endoftext|>"),
    ),
    "deepseek_r1": Family(
        R1_END, f"{ANSWER}{R1_END}", R1_END, R1_BEGIN,
        ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"), THINK, (R1_END,)
    ),
    "nemotron3": Family(
        "<|im_end|>", f"</think>{ANSWER}<|im_end|>", "<|im_end|>", special=(*IM, *THINK), stops=("<|im_end|>",)
    ),
    "glm4": Family(
        "<|endoftext|>", f"\n{ANSWER}<|endoftext|>", "<|endoftext|>",
        special=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        stops=("<|endoftext|>", "<|user|>", "<|observation|>"),
    ),
    "command_r": Family(
        "<|END_OF_TURN_TOKEN|>", f"<|START_RESPONSE|>{ANSWER}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>",
        ("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|START_RESPONSE|>",
         "<|END_RESPONSE|>"), stops=("<|END_OF_TURN_TOKEN|>",),
    ),
    "gpt_oss": Family(
        "<|return|>", f"<|channel|>final<|message|>{ANSWER}<|return|>", "<|return|>",
        special=("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|endoftext|>"),
        stops=("<|return|>", "<|endoftext|>", "<|call|>"),
    ),
    "zephyr": Family("</s>", f"{ANSWER}</s>", "</s>", "<s>", words=True, stops=("</s>",)),
    "smollm3": Family(
        "<|im_end|>", f"{ANSWER}<|im_end|>", "<|im_end|>", special=IM, plain=THINK, stops=("<|im_end|>",)
    ),
    "granite": Family(
        "<|end_of_text|>", f"{ANSWER}<|end_of_text|>", "<|end_of_text|>",
        special=("<|start_of_role|>", "<|end_of_role|>"), stops=("<|end_of_text|>",),
    ),
    "olmo2": Family("<|endoftext|>", f"{ANSWER}<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
}  # fmt: skip


def tokenizer(name: str, corpus: tuple[str, ...] = CORPUS) -> PreTrainedTokenizerFast:
    """A tokenizer with the family's template and special tokens, trained on the spot."""
    family = FAMILIES[name]
    bpe = (sentencepiece if family.words else byte_level)(corpus)
    named = [token for token in (family.bos, family.eos, "<pad>") if token]
    special = dict.fromkeys([*named, *family.special, family.end])
    bpe.add_tokens([AddedToken(t, special=True, normalized=False, rstrip=family.rstrip) for t in special])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.plain])
    if family.bos and family.bos != family.eos:
        known = [(family.bos, bpe.token_to_id(family.bos))]
        bpe.post_processor = processors.TemplateProcessing(single=f"{family.bos} $A", special_tokens=known)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token="<pad>",
        chat_template=(FOLDER / f"{name}.jinja").read_text(encoding="utf-8"),
    )


def byte_level(corpus: tuple[str, ...]) -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return bpe


def sentencepiece(corpus: tuple[str, ...]) -> Tokenizer:
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(steps)
    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    letters = sorted({*"".join(corpus), *(chr(i) for i in range(32, 127))} - {" ", "\n"})
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=pieces, initial_alphabet=letters)
    bpe.train_from_iterator(corpus, trainer)
    return bpe


def dated() -> PreTrainedTokenizerFast:
    """One whose template writes today's date."""
    return tokenizer("llama3")
