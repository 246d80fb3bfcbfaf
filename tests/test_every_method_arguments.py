"""What holds for every method: its arguments are documented, and it asks for a reference or refuses one."""

import inspect

import pytest
from cases import case_of
from every_method import METHODS

from upo.errors import UserError
from upo.methods.common.base import Method
from upo.models.policy import Policy
from upo.models.reference import FrozenReference


@pytest.mark.parametrize("kind", METHODS)
def test_every_argument_is_documented(kind):
    for base in kind.__mro__:
        if issubclass(base, Method) and "__init__" in vars(base):
            text = inspect.getdoc(base.__init__) or ""
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    assert f"\n    {name}: " in text, f"{base.__name__}.__init__: `{name}` is not explained"
    assert kind.__doc__ and inspect.getmodule(kind).__doc__


@pytest.mark.parametrize("kind", METHODS)
def test_a_reference_is_asked_for_or_refused(kind):
    with pytest.raises(UserError, match="reference"):
        references = [] if kind.needs.reference is not None else [FrozenReference()]
        kind(Policy(path="somewhere"), *references, **case_of(kind).options)
