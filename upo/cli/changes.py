"""What a run goes on with and what its checkpoint was made with: settings that must not differ unseen."""

import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from upo.data.module import PreferenceData
from upo.data.source import Source
from upo.errors import UserError
from upo.runtime.moved import present_path

TRAINER = (
    *("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches", "limit_train_batches"),
    *("overfit_batches", "callbacks"),
)
"""Of the Trainer's settings those that change what is learned; the others say where and how long."""

FREE = {
    *("data.workers", "data.rewards_cache", "data.tokens_cache", "data.tokens_per_microbatch", "data.layout"),
    *("data.seed", "model.policy.activation_checkpointing"),
}
"""What changes speed and memory, or follows from other settings."""

WATCHING = {
    *("LearningRateMonitor", "DeviceStatsMonitor", "TQDMProgressBar", "RichProgressBar", "ModelSummary"),
    *("RichModelSummary", "Timer", "ModelCheckpoint", "Checkpoints", "GenerationMetrics"),
    "SampleTable",
}
"""Callbacks that change nothing of what is learned."""

PLACES = {"path", "local", "tokenizer", "chat_template", "folder"}
"""Settings that hold a path: what has moved keeps its name."""

RESTORED = ("model.optimizer", "model.scheduler")
"""Part of the state that a resume restores: another setting would do nothing."""

SHOWN = 8
NOTHING = object()


def check_changes(file: Path, before: Any, now: dict[str, Any], allowed: bool) -> str | None:
    """Compares the settings of a run with those of the checkpoint that it goes on from.

    Args:
        before: the configuration in the checkpoint, as the version that wrote it has resolved it.
        now: the run's configuration, resolved.
        allowed: whether settings may differ, which is returned in words then.

    Raises:
        UserError: they differ; names them.
    """
    if not isinstance(before, dict):  # of an early version
        return None
    found = list(changes(_compared(before), _compared(now)))
    if not found:
        return None
    told = "; ".join(found[:SHOWN]) + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    if not allowed:
        raise UserError(
            f"{file} was trained with other settings: {told}. Set them back, add --allow_changes to go on with the new "
            "ones, or start a new run"
        )
    if fixed := [x for x in found if x.startswith(RESTORED)]:
        raise UserError(
            f"a resume restores optimizer and scheduler with their settings, so this would change nothing: "
            f"{'; '.join(fixed)}. Set it back, or export the checkpoint and start a new run from there"
        )
    return f"--allow_changes: {told} (learning rates and all else that the optimizer holds stay the checkpoint's)"


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what is learned."""
    trainer = config.get("trainer") or {}
    kept = {name: trainer.get(name) for name in TRAINER}
    callbacks = kept["callbacks"] or []
    kept["callbacks"] = [x for x in callbacks if not (_is_spec(x) and _name(x["class_path"]) in WATCHING)]
    seed = int(config.get("seed_everything") or 0)
    return {"model": config.get("model"), "data": config.get("data"), "trainer": kept, "seed_everything": seed}


def changes(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """What differs, as `key: before -> now`. A key that one side lacks has its default there, if it has one."""
    if key in FREE or before == now:
        return
    before, now = (
        {} if x is None and isinstance(other, dict) and not _is_spec(other) else x
        for x, other in ((before, now), (now, before))
    )
    if _is_spec(before) and _is_spec(now) and _same_class(before["class_path"], now["class_path"]):
        kind, old, new = _class(now["class_path"]), before.get("init_args") or {}, now.get("init_args") or {}
    elif isinstance(before, dict) and isinstance(now, dict) and not _is_spec(before) and not _is_spec(now):
        kind = PreferenceData if key == "data" else Source if key.startswith("data.sources[") else None
        old, new = before, now
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (a, b) in enumerate(zip(before, now, strict=True)):
            yield from changes(a, b, f"{key}[{i}]")
        return
    else:
        if not _same(before, now, key):
            yield f"{key}: {_short(before)} -> {_short(now)}"
        return
    for name in [*old, *(name for name in new if name not in old)]:
        a, b = (side[name] if name in side else _default(kind, name) for side in (old, new))
        if not (kind is not None and (a is NOTHING or b is NOTHING)):  # an option of another version, without a default
            yield from changes(a, b, f"{key}.{name}".strip("."))


def _is_spec(x: Any) -> bool:
    return isinstance(x, dict) and isinstance(x.get("class_path"), str)


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def _same_class(before: str, now: str) -> bool:
    """Whether two paths name one class; ours have moved within the package."""
    ours = all(path.startswith("upo.") or "." not in path for path in (before, now))
    return before == now or (ours and _name(before) == _name(now)) or present_path(before) == now


def _same(before: Any, now: Any, key: str) -> bool:
    if before == now or (before in (None, [], {}) and now in (None, [], {})):
        return True
    if not isinstance(before, str) or not isinstance(now, str):
        return False
    return _same_class(before, now) or (_name(key) in PLACES and Path(before).name == Path(now).name)


def _class(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)  # of the user's own configuration, which has been imported already
    except (ImportError, AttributeError, ValueError):
        return None


def _default(kind: Any, name: str) -> Any:
    """The default of a class's option; NOTHING where it has none that a YAML could hold."""
    for base in getattr(kind, "__mro__", ()):
        found = inspect.signature(base.__init__).parameters.get(name) if "__init__" in vars(base) else None
        if found is not None:
            plain = found.default is None or isinstance(found.default, str | int | float | list | dict | tuple)
            if plain and found.default is not inspect.Parameter.empty:
                return list(found.default) if isinstance(found.default, tuple) else found.default
            return NOTHING
    return NOTHING


def _short(x: Any) -> str:
    text = "nothing" if x is NOTHING else str(x["class_path"] if _is_spec(x) else x)
    return text if len(text) <= 60 else text[:57] + "..."
