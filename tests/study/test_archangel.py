"""The published Archangel checkpoints: their chat format, and the study that scores them, with tiny stand-ins."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from upo.comparison.view import print_comparison
from upo.data.chat_format import render
from upo.data.example import Example, Response
from upo.data.report import DataReport
from upo.data.tokenize import Encoder
from upo.errors import UserError
from upo.models.policy import Policy
from upo.study.ablation import ablate

pytestmark = pytest.mark.turns(3)

PAPER = Path(__file__).parent.parent.parent / "experiments" / "paper"
CHAT = (
    {"role": "user", "content": "Hi! I'm looking for a cake recipe."},
    {"role": "assistant", "content": "What kind of cake?"},
    {"role": "user", "content": "Chocolate cake."},
)
CARD = (
    "\n<|user|>\nHi! I'm looking for a cake recipe.\n<|assistant|>\nWhat kind of cake?"
    "\n<|user|>\nChocolate cake.\n<|assistant|>\n"
)
"""The example of the checkpoints' model cards, behind the line break that their training put before every turn."""


@pytest.fixture
def halos(stories260k: str) -> Policy:
    return Policy(path=stories260k, chat_template="halos")


def test_the_format_is_that_of_the_model_cards(halos: Policy) -> None:
    assert render(halos.tokenizer, CHAT) == CARD
    assert render(halos.tokenizer, CHAT[:2]) == CARD.partition("\n<|user|>\nChoc")[0], "a begun turn stays open"


def test_training_sees_one_bos_the_turns_and_eos(halos: Policy) -> None:
    """Prompt and response together are the tokens of the whole text, as the checkpoints were trained."""
    encoder, report = Encoder(halos.tokenizer), DataReport()
    (tokens,) = encoder.encode([Example(CHAT, (Response("Mix it."), Response("No")), source="made")], report)
    assert tokens.prompt == halos.tokenizer(CARD).input_ids and tokens.prompt.count(encoder.bos) == 1
    for ids, text in zip(tokens.responses, ("Mix it.", "No"), strict=True):
        assert [*tokens.prompt, *ids] == [*halos.tokenizer(CARD + text).input_ids, encoder.eos]


def test_a_template_is_a_name_or_a_file(stories260k: str, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    assert render(Policy(path=stories260k, chat_template=str(file)).tokenizer, CHAT[2:]) == "[user]Chocolate cake."
    with pytest.raises(UserError, match=r"no file `chatml`; name a \.jinja file, or halos"):
        _ = Policy(path=stories260k, chat_template="chatml").tokenizer


def stand_ins(folder: Path, stories: str) -> None:
    """Llamas of LLaMA-7B's shape (as many key heads as heads, untied, SwiGLU) and the classifier, all tiny."""
    for name in ("sft", "sft-dpo", "sft-kto", "sft-ppo", "sft-csft"):
        tokenizer = AutoTokenizer.from_pretrained(stories)
        if name == "sft-csft":
            tokenizer.add_tokens(["<|bad|>", "<|good|>"], special_tokens=True)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=86, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=256, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        )  # fmt: skip
        for part in (LlamaForCausalLM(config), tokenizer):
            part.save_pretrained(folder / f"archangel_{name}_llama7b")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join([*words, *(f"##{w}" for w in words[4:])]))
    labels = [
        "toxicity",
        "severe_toxicity",
        "obscene",
        "threat",
        "insult",
        "identity_attack",
        "sexual_explicit",
        "male",
    ]
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(
        vocab_size=60, **shape, num_labels=8, id2label=dict(enumerate(labels)), initializer_range=1.0,
        problem_type="multi_label_classification",
    )  # fmt: skip
    for part in (BertForSequenceClassification(config), BertTokenizer(str(folder / "vocab.txt"))):
        part.save_pretrained(folder / "classifier")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_published_rows_are_scored_untrained(
    shared: Path, stories260k: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The committed study, its hub names replaced: untouched weights, control token, our cells beside the paper's."""
    stand_ins(tmp_path, stories260k)
    for name in ("archangel.yaml", "archangel_llama7b.yaml"):
        (tmp_path / name).write_text((PAPER / name).read_text().replace("ContextualAI/", f"{tmp_path}/"))
    study = yaml.safe_load((tmp_path / "archangel.yaml").read_text())
    hh = {"name": "hh", "path": str(shared / "data" / "hh" / "helpful-base.test.jsonl.gz"), "limit": 60}
    small = {"evaluation.prompts": 8, "evaluation.max_new_tokens": 8, "evaluation.judge": "Sentiment"}
    study["overrides"] = small | {
        "data.sources": [hh], "data.validation": 20, "data.max_length": 256, "data.max_response": 32,
        "data.rewards.safety.init_args.model": str(tmp_path / "classifier"),
        "data.rewards_cache": str(tmp_path / "cache"), "data.tokens_cache": None,
    }  # fmt: skip
    (tmp_path / "archangel.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.chdir(tmp_path)
    assert ablate(tmp_path / "archangel.yaml") == []
    folder = tmp_path / "runs" / "paper_archangel" / "llama7b"
    assert not list(folder.rglob("*.ckpt")), "nothing was trained, nothing is saved"
    content = json.loads((folder / "comparison.json").read_text())
    print_comparison(content)
    out = capsys.readouterr().out
    assert "ours (published)" in out and "(38.4)" in out
    tables = content["published"]
    for row in ("SFT", "DPO", "KTO", "CSFT", "oPPO"):
        run = folder / f"{row.lower()}_seed0"
        figures = json.loads((run / "evaluation.json").read_text())["metrics"]
        assert tables[0]["cells"][row]["LLaMA-7B"]["ours"] == pytest.approx(100 * figures["policy/win_rate_vs_chosen"])
        assert all("ours" in table["cells"][row]["LLaMA-7B"] for table in tables), row
        assert ("policy/kl" in figures) == (row != "SFT")
    assert "ours" not in tables[0]["cells"]["UPO"]["LLaMA-7B"]
