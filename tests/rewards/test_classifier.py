"""The safety classifier, on tiny random ones saved to disk."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

from upo.data.example import Example, Response
from upo.errors import UserError
from upo.rewards import SafetyClassifier, annotate

LABELS = ["toxicity", "threat", "harmless"]
TEXTS = ["you are nice", "bad bad you", "", "nice " * 100, "are you bad ?", "nice", "unknown words"]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def build(problem_type, seed=0, cls=BertForSequenceClassification, labels=LABELS):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("classifier")
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "you", "are", "nice", "bad", "?"]
        (folder / "vocab.txt").write_text("\n".join(words))
        config = BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=24, problem_type=problem_type,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)}, initializer_range=0.8,
        )  # fmt: skip
        cls(config).save_pretrained(folder)
        BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
        return str(folder)

    return build


def slow(folder, text):
    """Logits of one text, alone and unpadded."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    ids = BertTokenizer.from_pretrained(folder)(text, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        return model(**ids).logits[0]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_multi_label_is_one_minus_the_worst_sigmoid(make, batch_size):
    folder = make("multi_label_classification")
    reward = SafetyClassifier(folder, categories=["threat", "toxicity"], batch_size=batch_size)
    expected = [1 - slow(folder, y).sigmoid()[:2].max().item() for y in TEXTS]
    assert reward([""] * len(TEXTS), TEXTS) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01
    everything = SafetyClassifier(folder)
    assert list(everything.categories([""], ["bad"])) == LABELS
    assert everything([""], ["bad"]) == pytest.approx([1 - slow(folder, "bad").sigmoid().max().item()], abs=1e-5)
    assert reward([], []) == []


def test_softmax_needs_the_unsafe_labels(make):
    folder = make("single_label_classification")
    with pytest.raises(UserError, match=r"exclude each other.*Known: toxicity, threat, harmless"):
        SafetyClassifier(folder)([""], ["bad"])
    reward = SafetyClassifier(folder, categories=["toxicity", "threat"])
    expected = [1 - slow(folder, y).softmax(-1)[:2].max().item() for y in TEXTS]
    assert reward([""] * len(TEXTS), TEXTS) == pytest.approx(expected, abs=1e-5)
    columns = reward.categories([""] * len(TEXTS), TEXTS)
    assert list(columns) == ["toxicity", "threat"] and len(columns["threat"]) == len(TEXTS)
    sigmoid = SafetyClassifier(folder, multi_label=True)
    assert sigmoid([""], ["bad"]) == pytest.approx([1 - slow(folder, "bad").sigmoid().max().item()], abs=1e-5)


def test_categories_stand_beside_the_reward(make, tmp_path, monkeypatch):
    """Also out of the cache, where nothing is measured again."""
    reward = SafetyClassifier(make("multi_label_classification"), categories=["threat", "toxicity"])
    examples = [Example("p", tuple(Response(y) for y in TEXTS))]
    (first,) = annotate(examples, {"safety": reward}, tmp_path)
    columns = reward.categories([""] * len(TEXTS), TEXTS)
    for i, response in enumerate(first.responses):
        parts = {f"safety/{name}": pytest.approx(column[i], abs=1e-6) for name, column in columns.items()}
        worst = max(column[i] for column in columns.values())
        assert response.rewards == {"safety": pytest.approx(1 - worst, abs=1e-6)} | parts
    monkeypatch.setattr(SafetyClassifier, "categories", None)
    assert annotate(examples, {"safety": reward}, tmp_path) == [first]


def test_mistakes(make, tmp_path):
    folder = make("multi_label_classification")
    with pytest.raises(UserError, match="did you mean `threat`"):
        SafetyClassifier(folder, categories=["threats"])([""], ["bad"])
    with pytest.raises(UserError, match="`categories` is empty"):
        SafetyClassifier(folder, categories=[])([""], ["bad"])
    with pytest.raises(UserError, match="no trained text classifier: its weights lack `classifier"):
        SafetyClassifier(make("multi_label_classification", cls=BertModel))([""], ["bad"])
    with pytest.raises(UserError, match="no text classifier at"):
        SafetyClassifier(str(tmp_path))([""], ["bad"])
    with pytest.raises(UserError, match="regression"):
        SafetyClassifier(make("regression", labels=["score"]))([""], ["bad"])


def test_fingerprint_follows_content_not_place(make):
    same, again = make("multi_label_classification"), make("multi_label_classification")
    used = SafetyClassifier(same)
    used([""], ["bad"])  # padding and truncation leave traces in the tokenizer
    assert used.fingerprint() == SafetyClassifier(again).fingerprint()
    others = [
        SafetyClassifier(make("multi_label_classification", seed=1)),
        SafetyClassifier(same, categories=["threat"]),
        SafetyClassifier(same, multi_label=False, categories=LABELS),
    ]
    assert len({r.fingerprint() for r in [used, *others]}) == 4
