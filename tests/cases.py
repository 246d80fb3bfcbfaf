"""What the tests that hold for every method must know of a method beside its class: its case.

The tests of `upo/methods/<file>.py`, `tests/methods/test_<file>.py`, name the cases of its classes. A class that the
defaults below suit needs none:

    CASES = {ODPO: Case(source="tiny.scored_pairs", defaults={"beta": 0.1, "alpha": 1.0}, normaliser_cancels=True)}
"""

import importlib
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from attrs import frozen

from upo.methods.common.base import Method


@frozen(eq=False)
class Case:
    """What is special about a method."""

    options: Mapping[str, Any] = {}
    """Arguments without which it does not train eight pairs."""
    source: str = "hh"
    """Who reads the file of pairs: a data source, by name or by path."""
    data: Mapping[str, Any] = {}
    """Settings of the data, where its units are not eight pairs."""
    heads: Collection[str] = ()
    """What it trains beside the policy, by attribute."""
    metrics: Collection[str] = ()
    """What it logs beside the metrics of its family."""
    step_metrics: Collection[str] = ()
    """Metrics that depend on how validation is cut into steps, beside divergences and advantages of a step."""
    falls: str | None = None
    """The metric that falls by 30 % while it trains, for a method that learns no preference."""
    stops_gradients: bool = False
    """Whether its loss stops gradients at what log-probs themselves make: weights, ratios, values."""
    kink_at_start: bool = False
    """Whether its loss has a kink where policy and reference agree: rounding picks the side."""
    normaliser_cancels: bool | None = None
    """Whether its loss knows the reference only by differences of log-ratios at one prompt, in which a factor of the
    reference cancels. Each method says so whose reference gives sums of log-probs."""
    log_odds_at: Mapping[str, Any] | None = {}
    """Options under which `loss` is a Bradley-Terry likelihood where the method claims to fit one
    (`reward_is_log_odds`); null where it trains on more than `loss`."""
    defaults: Mapping[str, Any] | None = None
    """Defaults of its arguments as its paper gives them, or the authors' code where that gives none; a class stands for
    any of its instances. Each method with arguments of its own names some, or an empty mapping."""
    not_in_loss: Collection[str] = ()
    """Arguments that no reference by hand varies: how its own heads are updated, what the class sets itself."""


def own_tests(kind: type[Method]) -> ModuleType | None:
    """The tests of the file that a method stands in; null where there are none."""
    name = "test_" + kind.__module__.rpartition(".")[2]
    return importlib.import_module(name) if find_spec(name) else None


def case_of(kind: type[Method]) -> Case:
    return getattr(own_tests(kind), "CASES", {}).get(kind, Case())
