"""What a run was trained with, in lines that can be read: the settings of its config.yaml that decide the result."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upo.runtime.yaml_files import read_yaml

TRAINER = ("max_epochs", "max_steps", "precision", "devices", "strategy", "gradient_clip_val")
LONGEST = 200
"""Characters of a value that are shown."""


def training_settings(config: Path) -> list[list[str]]:
    """Name and value of each setting of method, data, trainer and seed; what is null or empty is left out."""
    content = read_yaml(config)
    content = content if isinstance(content, dict) else {}
    trainer = content.get("trainer") or {}
    parts = {"method": content.get("model"), "data": content.get("data"), "after": content.get("after")}
    parts |= {"trainer": {name: trainer.get(name) for name in TRAINER}, "seed": content.get("seed_everything")}
    return [[name, value[:LONGEST]] for name, value in _lines(parts, "")]


def _lines(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Leaves with their dotted names; a class is its short name, its arguments come below it."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield name, str(value["class_path"]).rpartition(".")[2]
            value = value.get("init_args") or {}
        for key, inner in value.items():
            yield from _lines(inner, f"{name}.{key}".strip("."))
    elif isinstance(value, list) and any(isinstance(x, dict | list) for x in value):
        for i, inner in enumerate(value):
            yield from _lines(inner, f"{name}[{i}]")
    elif isinstance(value, list) and value:
        yield name, ", ".join(map(str, value))
    elif value is not None and value != []:
        yield name, str(value)
