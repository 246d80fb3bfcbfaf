"""Weighted sums of models: the arithmetic, every way to name a part, and what is refused."""

from pathlib import Path

import pytest
import tiny
import torch
from test_export import run_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from upo.errors import UserError
from upo.merge import main
from upo.models.export import export
from upo.models.weighted_sum import merge


def saved(folder: Path, seed: int, how: str, **config) -> Path:
    """A random model as a run folder, a checkpoint or a Hugging Face folder."""
    run = run_folder(folder / f"run{seed}", tiny.policy(seed=seed, **config))
    if how == "folder":
        export(run, folder / f"exported{seed}")
        return folder / f"exported{seed}"
    return run / "checkpoints" / "step=7.ckpt" if how == "checkpoint" else run


def weights(model) -> dict[str, torch.Tensor]:
    return {name: x.double() for name, x in model.state_dict().items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_weighted_sum_of_a_run_a_checkpoint_and_a_folder(kind, tied, tmp_path):
    config = {"kind": kind, "tie_word_embeddings": tied}
    parts = [saved(tmp_path, i, how, **config) for i, how in enumerate(("run", "checkpoint", "folder"))]
    share = [0.5, 0.3, 0.2]
    merge(parts, tmp_path / "out", share)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    models = [weights(tiny.policy(seed=i, **config).model) for i in range(3)]
    for name, x in weights(merged).items():
        expected = sum(w * m[name] for w, m in zip(share, models, strict=True))
        torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-7)
    same = merged.get_input_embeddings().weight.data_ptr() == merged.get_output_embeddings().weight.data_ptr()
    assert same == tied
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"| {part} | {w:g} |" in card for part, w in zip(parts, share, strict=True))


@pytest.mark.parametrize("order", [("folder", "run"), ("run", "folder")])
def test_all_weight_on_one_part_gives_it_back(order, tmp_path):
    parts = [saved(tmp_path, i, how) for i, how in enumerate(order)]
    merge(parts, tmp_path / "out", [0.0, 1.0])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    expected = tiny.policy(seed=1).model.state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], x) for name, x in expected.items())


def test_half_precision_is_rounded_once(tmp_path):
    """To the first part's type."""
    parts = [saved(tmp_path, i, "run", dtype="bfloat16") for i in range(3)]
    merge(parts, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert merged.dtype == torch.bfloat16
    models = [weights(tiny.policy(seed=i, dtype="bfloat16").model) for i in range(3)]
    for name, x in merged.state_dict().items():
        assert torch.equal(x, sum(1 / 3 * m[name] for m in models).bfloat16()), "equal shares are the default"


def test_the_command(tmp_path, capsys):
    parts = [str(saved(tmp_path, i, "run")) for i in range(2)]
    main([*parts, "--weights", "0.25", "0.75", "--out", str(tmp_path / "out")])
    assert "merged 2 models" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists()
    for wrong in ([], ["--overwrite", "--weights", "0.25", "0.5"]):
        with pytest.raises(SystemExit) as stop:
            main([*parts, "--out", str(tmp_path / "out"), *wrong])
        assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert "not empty" in errors and "sum to 1" in errors and "Traceback" not in errors
    main([*parts, "--out", str(tmp_path / "out"), "--overwrite"])


def test_what_does_not_belong_together_is_refused_in_one_sentence(tmp_path):
    first = saved(tmp_path, 0, "run")
    wide = saved(tmp_path, 1, "run", intermediate_size=64)
    turned = saved(tmp_path, 2, "folder", rope_theta=500.0)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    cases = [
        ([first, wide], None, "intermediate_size"),
        ([first, turned], None, "another architecture"),
        ([first, adapter], None, "no model at"),
        ([first], None, "two models"),
        ([first, first], [1.0], "as many --weights"),
        ([first, first], [0.7, 0.4], "sum to 1"),
        ([first, first], [float("nan"), 0.5], "sum to 1"),
        ([first, tmp_path / "none.ckpt"], None, "no such checkpoint"),
        ([first, tmp_path / "nowhere"], None, "no model at"),
    ]
    for parts, share, message in cases:
        with pytest.raises(UserError, match=message) as error:
            merge(parts, tmp_path / "out", share)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused(tmp_path):
    first, other = saved(tmp_path, 0, "run"), saved(tmp_path, 1, "folder")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UserError, match="another tokenizer"):
        merge([first, other], tmp_path / "out")
