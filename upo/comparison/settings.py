"""What of a configuration makes a result, and how to say in few words where two configurations differ."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upo.runtime.moved import present_path

TRAINER = ("max_epochs", "max_steps", "gradient_clip_val", "precision", "callbacks")
HARMLESS = ("seed", "workers", "rewards_cache", "tokens_cache")
"""Arguments of the data that change no result, or only as the seed does."""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that makes a result, the seed aside: dotted key to plain value; classes lose their `init_args`."""
    trainer = {k: config["trainer"].get(k) for k in TRAINER}
    data = {k: v for k, v in config["data"].items() if k not in HARMLESS}
    # where the YAMLs of earlier stages lie is no setting, and has changed when the experiments moved into folders
    after = {"after": [Path(path).name for path in config["after"]]} if config.get("after") else {}
    flat = _flat({"model": config["model"], "data": data, "trainer": trainer} | after, "")
    return {key: value for key, value in flat.items() if value is not None}  # earlier versions had fewer arguments


def identity(settings: Mapping[str, Any]) -> str:
    """Equal for equal settings: false is what a version did that had no such argument yet."""
    return json.dumps({k: v for k, v in settings.items() if v is not False}, sort_keys=True, default=str)


def _flat(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: _plain(value)}
    found: dict[str, Any] = {}
    for name, x in value.items():
        x = present_path(x) if name == "class_path" else x
        inner = key if name == "init_args" else f"{key}.{name}".strip(".")
        if name == "init_args" and not x:
            continue
        found |= _flat(x, inner)
    return found


def _plain(value: Any) -> Any:
    """1.0 as 1, also inside of lists: YAMLs write either. What is null or false is left out, see `identity`."""
    if isinstance(value, list):
        return [_plain(x) for x in value]
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items() if x is not None and x is not False}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys in which they are not all alike, in the order of the first that has them."""
    keys = dict.fromkeys(key for own in settings for key in own)
    return [k for k in keys if len({identity({k: own.get(k, False)}) for own in settings}) > 1]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each key that is no other key's."""
    found = {}
    for key in keys:
        parts = key.removesuffix(".class_path").split(".")
        for n in range(1, len(parts) + 1):
            end = ".".join(parts[-n:])
            if sum(f".{other.removesuffix('.class_path')}".endswith(f".{end}") for other in keys) == 1:
                break
        found[key] = end
    return found


def shown(value: Any) -> str:
    """A setting as a table shows it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value.rpartition(".")[2] if value.count(".") and "/" not in value and " " not in value else value
    return json.dumps(value, default=str)


def natural(value: Any) -> tuple[int, float, str]:
    """Sorts settings: none first, numbers by size, the rest as text."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, (int, float)):
        return 1, float(value), ""
    return 2, 0.0, str(value)
