"""Models with random weights of real shapes, and a tokenizer that turns the word `w17` into token 17."""

import functools
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "9M": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4}
    | {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "qwen2.5-1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
    | {"num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False},
}


def config(name: str, vocabulary: int) -> dict[str, Any]:
    """A Llama config of the shape `name`."""
    return {"model_type": "llama", "vocab_size": vocabulary, "max_position_embeddings": 8192} | SHAPES[name]


@functools.cache
def tokenizer() -> Any:
    """4,096 words; token 1 is BOS, 2 is EOS, 3 is padding. Larger vocabularies only make the head larger."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<pad>"]
    words = {w: i for i, w in enumerate([*special, *(f"w{i}" for i in range(4, 4096))])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def text(tokens: list[int]) -> str:
    return " ".join(f"w{i}" for i in tokens)
