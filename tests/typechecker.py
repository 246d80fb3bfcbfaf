"""What checks annotations under pytest: beartype, with two of its hints read otherwise.

A plain number is as good as jsonargparse's ranged types: `PositiveFloat` and its like are made by the command line
alone, in Python one writes `DPO(policy, beta=0.1)`. And `Self` is not checked: methods are decorated one by one.
"""

from typing import Any, Self

from beartype import BeartypeConf, BeartypeHintOverrides, beartype
from jsonargparse import typing as ranged

KINDS = (getattr(ranged, name) for name in ranged.__all__ if name.endswith(("Int", "Float", "Interval")))
NUMBERS = {kind: float if issubclass(kind, float) else int for kind in KINDS}
check = beartype(conf=BeartypeConf(hint_overrides=BeartypeHintOverrides(NUMBERS | {Self: Any}), is_pep484_tower=True))
