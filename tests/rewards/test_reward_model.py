"""Scalar reward models, tiny random ones on disk: each text scores as it does alone."""

import pytest
import tiny
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
)

from upo.errors import UserError
from upo.rewards import HuggingFaceReward, annotate

TEMPLATE = "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
PROMPTS = ["How do I bake bread?", "Say hello.", ({"role": "user", "content": "Why is the sky blue?"},), "", "Name it."]
RESPONSES = ["Mix flour, water and yeast, then wait.", "Hello!", "Air scatters blue light.", "x", ""]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def build(seed=0, pad=None, template=None, cls=LlamaForSequenceClassification, labels=1):
        tokenizer = tiny.tokenizer(template)
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=96, initializer_range=0.5, num_labels=labels, pad_token_id=pad,
        )  # fmt: skip
        folder = tmp_path_factory.mktemp("reward_model")
        cls(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return build


@torch.no_grad()
def alone(folder: str, ids: list[int], **inputs) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return model(input_ids=torch.tensor([ids]), **inputs).logits[0, 0].item()


def rendered(prompt, response) -> str:
    content = prompt if isinstance(prompt, str) else prompt[0]["content"]
    return f"<|bos|>user: {content}<|end|><|bos|>assistant: {response}<|end|>"


@pytest.mark.parametrize("pad", [None, 0, 2], ids=["no padding id", "padding id", "padding is EOS"])
def test_chat_template_scores_do_not_depend_on_the_batch(make, pad):
    """Also where texts end with EOS and EOS pads: the model reads the same token as it does alone."""
    folder, tokenizer = make(pad=pad, template=TEMPLATE), tiny.tokenizer()
    texts = [rendered(x, y) for x, y in zip(PROMPTS, RESPONSES, strict=True)]
    expected = [alone(folder, tokenizer(t, add_special_tokens=False).input_ids) for t in texts]
    assert max(expected) - min(expected) > 0.1
    for batch_size in (1, 3, 32):
        reward = HuggingFaceReward(folder, batch_size=batch_size)
        assert reward(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-5)
        assert reward(PROMPTS, RESPONSES) == reward(PROMPTS, RESPONSES)
    assert reward([], []) == []


def test_an_open_turn_is_continued(make):
    folder = make(template=TEMPLATE)
    open_turn = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "})
    whole = HuggingFaceReward(folder)([({"role": "user", "content": "Hi"},)], ["Well, hello"])
    assert HuggingFaceReward(folder)([open_turn], ["hello"]) == pytest.approx(whole, abs=1e-6)


def test_without_a_template_the_response_follows_the_prompt(make):
    folder, tokenizer = make(), tiny.tokenizer()
    expected = [alone(folder, tokenizer(t).input_ids) for t in ("Say hello. Hello!", "user: Hi\n\nthere")]
    values = HuggingFaceReward(folder)(["Say hello.", ({"role": "user", "content": "Hi"},)], [" Hello!", "there"])
    assert values == pytest.approx(expected, abs=1e-5)


def test_long_text_is_cut_on_the_left(make):
    folder = make()
    ids = tiny.tokenizer()("How do I bake bread? " * 9 + "Wait for an hour.").input_ids
    for limit, length in ((8, 8), (None, 96)):
        reward = HuggingFaceReward(folder, max_length=limit)
        value = reward(["How do I bake bread? " * 9], ["Wait for an hour."])
        assert len(ids) > length and value == pytest.approx([alone(folder, ids[-length:])], abs=1e-5)


def test_encoder_gets_two_segments(tmp_path):
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "say", "hello", "you", "bad", "?"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, num_labels=1, initializer_range=0.8,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    values = HuggingFaceReward(str(tmp_path))(["say hello ?", "you"], ["hello you", "bad bad hello"])
    pairs = [([2, 5, 6, 9, 3, 6, 7, 3], [0] * 5 + [1] * 3), ([2, 7, 3, 8, 8, 6, 3], [0] * 3 + [1] * 4)]
    expected = [alone(str(tmp_path), ids, token_type_ids=torch.tensor([types])) for ids, types in pairs]
    assert values == pytest.approx(expected, abs=1e-5)


def test_fingerprint_follows_content_not_place(make, tmp_path):
    same, again = make(template=TEMPLATE), make(template=TEMPLATE)
    used = HuggingFaceReward(same, batch_size=2)
    annotated = [e.responses for e in annotate([], {"rm": used}, tmp_path)]
    used(PROMPTS, RESPONSES)  # padding leaves traces in configuration and tokenizer
    assert annotated == [] and used.fingerprint() == HuggingFaceReward(again).fingerprint()
    others = [make(seed=1, template=TEMPLATE), make()]
    prints = {used.fingerprint(), HuggingFaceReward(same, max_length=9).fingerprint()}
    assert len(prints | {HuggingFaceReward(x).fingerprint() for x in others}) == 4


def test_mistakes(make, tmp_path):
    with pytest.raises(UserError, match=r"has 3 outputs.*SafetyClassifier"):
        HuggingFaceReward(make(labels=3))([""], ["x"])
    with pytest.raises(UserError, match=r"no trained reward model: its weights lack `score.weight`"):
        HuggingFaceReward(make(cls=LlamaModel))([""], ["x"])
    with pytest.raises(UserError, match="no reward model at"):
        HuggingFaceReward(str(tmp_path))([""], ["x"])
