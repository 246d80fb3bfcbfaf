"""The example in the docstring of `Responses` is what `lay_out` makes."""

import ast
import inspect
import re

import torch
from attrs import evolve, fields
from tiny import unit

from upo.data.example import Response
from upo.data.layout import Responses, lay_out


def test_the_example_of_the_docstring():
    values = iter((0.5, 0.25, 1.0))
    work = [unit([5, 6], [7, 2], [8, 9, 2]), unit([4], [3, 2])]
    rewarded = [
        evolve(u, example=u.example.with_responses(tuple(Response(r.text, rewards={"a": next(values)})
                                                         for r in u.example.responses))) for u in work
    ]  # fmt: skip
    made = lay_out(rewarded, "packed", row_tokens=5, pad_id=0, rewards=("a",))
    made = evolve(made, reference_logps=torch.tensor([-3.5, -4.25, -2.0]))
    text = inspect.getdoc(Responses) or ""
    for name in (field.name for field in fields(Responses)):
        found = re.search(rf'^    {name} +(\[.*\]|".*")', text, re.M)
        assert found, name
        value = getattr(made, name)
        assert ast.literal_eval(found[1]) == (value.tolist() if isinstance(value, torch.Tensor) else value), name
    padded = lay_out(rewarded, "padded", row_tokens=5, pad_id=0)
    for name in ("input_ids", "predict"):
        assert f"{name} {getattr(padded, name).tolist()}" in " ".join(text.split()), name
