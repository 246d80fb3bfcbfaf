"""The example in the docstring of `Responses` is what `collate_responses` makes."""

import ast
import inspect
import re

import torch
from attrs import evolve, fields
from tiny import groups_of, unit

from upo.data.layout import Responses, collate_responses


def test_the_example_of_the_docstring():
    """Rewards and reference log-probs come as columns, which `collate_responses` does not know."""
    work = groups_of([unit([5, 6], [7, 2], [8, 9, 2]), unit([4], [3, 2])])
    columns = {
        "rewards": torch.tensor([[0.5], [0.25], [1.0]]),
        "reference_logps": torch.tensor([-3.5, -4.25, -2.0]),
    }
    made = evolve(collate_responses(work, "packed", row_tokens=5, pad_id=0), **columns)
    text = inspect.getdoc(Responses) or ""
    for name in (field.name for field in fields(Responses)):
        found = re.search(rf'^    {name} +(\[.*\]|".*")', text, re.M)
        assert found, name
        value = getattr(made, name)
        assert ast.literal_eval(found[1]) == (value.tolist() if isinstance(value, torch.Tensor) else value), name
    padded = collate_responses(work, "padded", row_tokens=5, pad_id=0)
    for name in ("input_ids", "logit_positions"):
        assert f"{name} {getattr(padded, name).tolist()}" in " ".join(text.split()), name
