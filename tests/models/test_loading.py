"""What reading a model says, and what its weights are known by."""

import re
import sys

import pytest
import tiny
import torch

from upo.errors import UserError
from upo.models import loading
from upo.models.checkpoint import load_model
from upo.models.loading import base_hash, tensors_hash
from upo.models.policy import Policy


def read(path: str, monkeypatch: pytest.MonkeyPatch, large: int | None) -> None:
    if large is not None:
        monkeypatch.setattr(loading, "LARGE", large)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Policy(path=path, dtype="bfloat16").build()


def test_only_large_models_are_talked_about(stories260k, monkeypatch, capsys) -> None:
    read(stories260k, monkeypatch, None)
    assert capsys.readouterr() == ("", "")
    read(stories260k, monkeypatch, 1000)
    out, err = capsys.readouterr()
    assert f"read {stories260k}: 0.00 billion parameters, bfloat16, 0.0 GiB, in " in out
    assert re.search(r"in \d+ s; this process has held", out)
    assert "100%" in err and len(out.splitlines()) == 1


def test_a_hash_sees_names_types_shapes_and_values() -> None:
    x = torch.arange(6.0).view(2, 3)
    same = tensors_hash([("b", x), ("a", x + 1)], {"k": 1})
    assert same == tensors_hash([("a", x + 1), ("b", x.clone())], {"k": 1})
    others = [
        tensors_hash([("b", x), ("c", x + 1)], {"k": 1}),
        tensors_hash([("b", x), ("a", x + 1)], {"k": 2}),
        tensors_hash([("b", x), ("a", (x + 1).view(3, 2))], {"k": 1}),
        tensors_hash([("b", x), ("a", (x + 1).to(torch.float64))], {"k": 1}),
        tensors_hash([("b", x), ("a", torch.nextafter(x + 1, x + 2))], {"k": 1}),
    ]
    assert len({same, *others}) == 6


def test_weights_in_4_bits_are_left_out_of_a_bases_hash() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    before = base_hash(model)
    model[0].weight = torch.nn.Parameter(torch.zeros(2, 1, dtype=torch.uint8), requires_grad=False)
    without = base_hash(model)
    model[0].weight.data += 1
    assert base_hash(model) == without != before


# ---- what was not read ---------------------------------------------------------------------------------------------


def folder_with(folder, change, **config) -> str:
    """A model folder whose tensors `change` has changed in place."""
    from safetensors.torch import load_file, save_file

    made = tiny.policy(**config)
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def from_policy(path: str):
    policy = Policy(path=path)
    policy.build()
    return policy.model


def from_anywhere(path: str):
    return load_model(path)[0]


@pytest.mark.parametrize("read", [from_policy, from_anywhere])
def test_a_folder_that_lacks_tensors_is_refused(read, tmp_path):
    """transformers would draw them at random, with a line in its log."""

    def lose(tensors):
        for name in ("gate_proj", "up_proj", "down_proj"):
            del tensors[f"model.layers.1.mlp.{name}.weight"]
        del tensors["model.norm.weight"]

    path = folder_with(tmp_path, lose)
    with pytest.raises(UserError, match=r"lacks `model.layers.1.mlp.down_proj.weight`, .* and 1 more: .* be random"):
        read(path)


@pytest.mark.parametrize("read", [from_policy, from_anywhere])
@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "inf"), (-float("inf"), "inf")])
def test_weights_that_are_no_numbers_are_refused(read, value, word, tmp_path):
    def spoil(tensors):
        tensors["model.layers.0.self_attn.v_proj.weight"][3, 2] = value

    with pytest.raises(UserError, match=rf"`model.layers.0.self_attn.v_proj.weight` holds {word}"):
        read(folder_with(tmp_path, spoil))


@pytest.mark.parametrize("read", [from_policy, from_anywhere])
def test_a_tied_head_is_not_missing(read, tmp_path):
    path = folder_with(tmp_path, lambda tensors: tensors.pop("lm_head.weight", None), tie_word_embeddings=True)
    model = read(path)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
