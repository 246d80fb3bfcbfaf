"""Checkpoint -> Hugging Face folder -> the same model."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from upo.errors import UserError
from upo.models.checkpoint import load_model
from upo.models.export import export

CONFIG = """\
seed_everything: 0
model:
  class_path: upo.methods.DPO
  init_args: {policy: {class_path: upo.models.policy.Policy, init_args: {path: start}}}
data: {sources: [{name: hh, path: Anthropic/hh-rlhf}]}
"""


def run_folder(folder: Path, policy) -> Path:
    """A run folder with one checkpoint, as upo.fit leaves it."""
    (folder / "checkpoints").mkdir(parents=True)
    weights = {f"policy.model.{k}": v for k, v in policy.model.state_dict().items()}
    content = {
        "state_dict": weights | {"value_head.layers.0.weight": torch.zeros(2, 2)},
        "policy_files": policy.files(),
        "global_step": 7,
    }
    torch.save(content, folder / "checkpoints" / "step=7.ckpt")
    (folder / "config.yaml").write_text(CONFIG)
    figures = {"val/rewards/accuracies": 0.5123, "policy/kl": 0.25, "policy/win_rate_vs_chosen": 0.5}
    figures |= {"policy/win_rate_vs_chosen_low": 0.4, "policy/win_rate_vs_chosen_high": 0.6, "policy/tokens": 7.0}
    figures |= {"reference/win_rate_vs_chosen": 0.3} | {f"policy/rewards/r{i}": 0.1 * i for i in range(9)}
    (folder / "summary.json").write_text(json.dumps(figures))
    return folder


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_exported_model_is_the_trained_one(kind: str, tied: bool, tmp_path: Path) -> None:
    policy = tiny.policy(kind, tie_word_embeddings=tied)
    export(run_folder(tmp_path / "run", policy), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("How do I bake bread?", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, policy.model.eval()(ids).logits)
    same = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert same == tied
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]


def test_the_card_tells_method_data_metrics_and_configuration(tmp_path: Path) -> None:
    export(run_folder(tmp_path / "run", tiny.policy()), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    facts = ("method: DPO", "Anthropic/hh-rlhf", "starts from: start", "7 optimizer steps", "| 0.512 |")
    for fact in (*facts, CONFIG.strip()):
        assert fact in card
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 10, "those that say most"
    assert rows[0][:4] == ["| win_rate_vs_chosen", "0.500 (0.400 to 0.600)", "0.300", "higher"]
    assert [row[0] for row in rows[1:4]] == ["| kl", "| val/rewards/accuracies", "| rewards/r0"]
    assert all(row[4].removesuffix(" |").strip() for row in rows), "a sentence each"


def test_files_that_transformers_would_not_write_are_kept(tmp_path: Path) -> None:
    """Byte for byte, whatever they hold; those that it writes are its own."""
    run = run_folder(tmp_path / "run", tiny.policy())
    file = run / "checkpoints" / "step=7.ckpt"
    content = torch.load(file, weights_only=True)
    content["policy_files"]["vocabulary.model"] = b"\x00\xff\r\n"
    torch.save(content, file)
    export(run, tmp_path / "out")
    assert (tmp_path / "out" / "vocabulary.model").read_bytes() == b"\x00\xff\r\n"


def test_all_ways_to_name_a_model_lead_to_it(tmp_path: Path) -> None:
    policy = tiny.policy()
    run = run_folder(tmp_path / "run", policy)
    export(run / "checkpoints" / "step=7.ckpt", tmp_path / "out")
    expected = policy.model.get_input_embeddings().weight
    for path in (run, run / "checkpoints" / "step=7.ckpt", tmp_path / "out"):
        model, tokenizer = load_model(path)
        assert torch.equal(model.get_input_embeddings().weight, expected)
        assert tokenizer.get_vocab() == policy.tokenizer.get_vocab()
        assert not model.training


def test_the_newest_checkpoint_is_taken(tmp_path: Path) -> None:
    """The one with the most steps, whatever was copied last."""
    import os

    run = run_folder(tmp_path / "run", tiny.policy())
    newer = run_folder(tmp_path / "newer", tiny.policy(seed=1)) / "checkpoints" / "step=7.ckpt"
    os.rename(newer, run / "checkpoints" / "step=10.ckpt")
    os.utime(run / "checkpoints" / "step=10.ckpt", (1, 1))
    expected = tiny.policy(seed=1).model.get_input_embeddings().weight
    assert torch.equal(load_model(run)[0].get_input_embeddings().weight, expected)


def test_a_full_folder_is_kept_without_overwrite(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", tiny.policy())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        export(run, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    export(run, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists() and (tmp_path / "out" / "config.json").exists()


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", tiny.policy())
    whole = (run / "checkpoints" / "step=7.ckpt").read_bytes()
    cut, text, other = (tmp_path / name for name in ("cut.ckpt", "text.ckpt", "other.ckpt"))
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("hi\n")
    torch.save({"state_dict": {}}, other)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    cases = {
        cut: "broken or no checkpoint",
        text: "broken or no checkpoint",
        other: "not written by upo.fit",
        tmp_path / "none.ckpt": "no such checkpoint",
        tmp_path / "empty": "no checkpoint yet",
        tmp_path / "nowhere": "neither a run folder nor",
    }
    for source, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            export(source, tmp_path / "out")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"state_dict": Evil(), "policy_files": {}}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="broken or no checkpoint"):
        export(tmp_path / "evil.ckpt", tmp_path / "out")
    assert not (tmp_path / "harm").exists()
