"""What reading a model says, and what its weights are known by."""

import re
import sys

import pytest
import torch

from upo.models import loading
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
