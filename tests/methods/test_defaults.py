"""Defaults are the papers', or the authors' code's where a paper gives none; each method's docstring says which."""

import inspect
from typing import Any

import pytest
from cases import case_of

import upo.methods
from upo.methods.common.base import Method

METHODS = {name: getattr(upo.methods, name) for name in sorted(upo.methods.__all__)}


def defaults(kind: type[Method]) -> dict[str, Any]:
    """Of all arguments, those of the class before those of its parents."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base) and issubclass(base, Method):
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                found.setdefault(name, parameter.default)
    return found


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if case_of(kind).defaults])
def test_defaults_are_the_papers(name):
    known = defaults(METHODS[name])
    for argument, value in case_of(METHODS[name]).defaults.items():
        default = known[argument]
        assert isinstance(default, value) if isinstance(value, type) else default == value, argument


def test_no_method_is_left_out():
    """An empty mapping: without numbers in a paper, or pinned by tests of its own."""
    for name, kind in METHODS.items():
        own = defaults(kind).keys() - inspect.signature(Method.__init__).parameters.keys() - {"args", "kwargs"}
        assert not own or case_of(kind).defaults is not None, f"{name}: its case names no defaults of {sorted(own)}"
