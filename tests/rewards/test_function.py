"""Python callables as rewards, and what their mistakes look like."""

import sys

import pytest

from upo.errors import UserError
from upo.rewards import Function

SOURCE = """
from functools import partial
import numpy, torch
def length(prompts, responses): return [len(p) + len(y) for p, y in zip(prompts, responses)]
def array(prompts, responses): return numpy.ones(len(responses))
def tensor(prompts, responses): return torch.ones(len(responses)).bool()
def short(prompts, responses): return [1.0]
def broken(prompts, responses): return [1.0, float("nan")]
def words(prompts, responses): return ["1.0", "2.0"]
def nothing(prompts, responses): return None
fixed = partial(max, default=0)
class Klass: pass
class Callable:
    def __call__(self, prompts, responses): return [2.0 for _ in responses]
instance = Callable()
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "my_rewards.py"
    sys.modules.pop("my_rewards", None)


@pytest.mark.parametrize("path", ["my_rewards:length", "my_rewards.length"])
def test_both_spellings(module, path):
    assert Function(path)(["ab", "c"], ["d", ""]) == [3.0, 1.0]


def test_arrays_and_callable_objects(module):
    for name, value in {"array": 1.0, "tensor": 1.0, "instance": 2.0}.items():
        values = Function(f"my_rewards:{name}")(["a", "b"], ["c", "d"])
        assert values == [value, value] and all(type(v) is float for v in values)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:f", "cannot import `no_such_module`"),
        ("my_rewards:lenght", "did you mean `length`"),
        ("my_rewards:Klass", "is no function"),
        ("my_rewards:number", "is no function"),
        ("length", "package.module:name"),
    ],
)
def test_wrong_path(module, path, message):
    with pytest.raises(UserError, match=message):
        Function(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "gave 1 values for 2 responses"),
        ("broken", "gave nan for response 1 of 2"),
        ("words", "gave '1.0' for response 0 of 2"),
        ("nothing", "gave NoneType"),
    ],
)
def test_wrong_values_name_the_reward(module, name, message):
    with pytest.raises(UserError, match=f"my_rewards:{name}.*{message}"):
        Function(f"my_rewards:{name}")(["a", "b"], ["c", "d"])


def test_fingerprint_changes_with_the_file(module):
    before = Function("my_rewards:length").fingerprint()
    module.write_text(SOURCE + "# another version\n")
    assert Function("my_rewards:length").fingerprint() != before != Function("my_rewards:array").fingerprint()
    assert Function("my_rewards:instance").fingerprint() and Function("math:dist").fingerprint()
