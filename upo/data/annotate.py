"""Rewards of a data set: measured once, offline, before training, and kept on disk by content."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import evolve

from upo.data.example import Example, Prompt, prompt_key
from upo.data.rewards import Reward, VectorReward, checked

log = logging.getLogger(__name__)

CHUNK = 256
"""Responses between two writes to the cache: what a killed run has to measure again at most."""

Value = float | dict[str, float]
"""What is measured of one text: a number, or the named ones that a `VectorReward` is made of."""


def annotate(
    examples: Sequence[Example],
    rewards: Mapping[str, Reward],
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> list[Example]:
    """The examples with `Response.rewards[name]` filled in, each distinct text measured once.

    What a reward is made of stands beside it as `<name>/<part>`: the members of a `Mixture`, a classifier's categories.

    Args:
        examples: any number of examples; their order is kept.
        rewards: name to reward; a value already there under that name is replaced.
        cache_dir: folder with one append-only file a reward fingerprint, safe for several processes at once
            and for one that is killed; None measures everything anew.
        progress: whether to show a bar (only ever on a terminal).

    Raises:
        UserError: a reward gave the wrong number of values, or one that is not finite.
    """
    texts = {_key(e.prompt, r.shown): (e.prompt, r.shown) for e in examples for r in e.responses}
    columns: dict[str, dict[str, float]] = {}
    names: dict[str, str] = {}
    for name, reward in rewards.items():
        twin = names.setdefault(reward.fingerprint(), name)  # a judge is often one of the rewards: measured once
        if twin == name:
            columns |= _columns(name, reward, texts, cache_dir, progress)
        else:
            own = [column for column in columns if column == twin or column.startswith(f"{twin}/")]
            columns |= {name + column.removeprefix(twin): columns[column] for column in own}

    def filled(example: Example) -> Example:
        keys = [_key(example.prompt, r.shown) for r in example.responses]
        return example.with_responses(
            tuple(
                evolve(r, rewards=r.rewards | {name: values[key] for name, values in columns.items()})
                for r, key in zip(example.responses, keys, strict=True)
            )
        )

    return [filled(example) for example in examples]


def _key(prompt: Prompt, response: str) -> str:
    kind = "text" if isinstance(prompt, str) else "chat"
    return hashlib.sha256(f"{kind}\0{prompt_key(prompt)}\0{response}".encode("utf-8", "surrogatepass")).hexdigest()


def _columns(
    name: str,
    reward: Reward,
    texts: Mapping[str, tuple[Prompt, str]],
    cache_dir: str | Path | None,
    progress: bool,
) -> dict[str, dict[str, float]]:
    """{column: {key: value}}: the reward's own column, then those that it is made of."""
    if not isinstance(reward, VectorReward):
        return {name: _values(name, reward, texts, cache_dir, progress)}  # type: ignore[dict-item]
    below: dict[str, dict[str, float]] = {}
    if reward.parts:  # each is measured and kept by itself, whoever else uses it
        for part, inner in reward.parts.items():
            below |= _columns(f"{name}/{part}", inner, texts, cache_dir, progress)
        vectors = {key: {part: below[f"{name}/{part}"][key] for part in reward.parts} for key in texts}
    else:
        vectors = _values(name, reward, texts, cache_dir, progress)
        for key, vector in vectors.items():
            for part, value in vector.items():  # type: ignore[union-attr]
                below.setdefault(f"{name}/{part}", {})[key] = value
    return {name: {key: reward.total(vector) for key, vector in vectors.items()}} | below  # type: ignore[arg-type]


def _values(
    name: str,
    reward: Reward,
    texts: Mapping[str, tuple[Prompt, str]],
    cache_dir: str | Path | None,
    progress: bool,
) -> dict[str, Value]:
    """{key: value} of one reward: from the cache where it is there, else measured and appended to it."""
    from tqdm import tqdm

    cache = None
    if cache_dir is not None:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(reward.fingerprint().encode()).hexdigest()[:24]
        cache = Path(cache_dir) / f"{type(reward).__name__}-{digest}.jsonl"
    known = _read(cache) if cache else {}
    values = {key: known[key] for key in texts if key in known}
    missing = [key for key in texts if key not in known]
    log.info("reward %s: %d texts from the cache, %d to measure", name, len(values), len(missing))
    bar = tqdm(total=len(missing), desc=f"reward {name}", unit="text", disable=None if progress and missing else True)
    with bar:
        for start in range(0, len(missing), CHUNK):
            keys = missing[start : start + CHUNK]
            prompts, responses = zip(*(texts[key] for key in keys), strict=True)
            new = dict(zip(keys, _measured(name, reward, prompts, responses), strict=True))
            if cache:
                _append(cache, new)
            values |= new
            bar.update(len(keys))
    return values


def _measured(name: str, reward: Reward, prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[Value]:
    if not isinstance(reward, VectorReward):
        return checked(name, reward(prompts, responses), len(responses))
    vector = reward.vector(prompts, responses)
    columns = {part: checked(f"{name}/{part}", column, len(responses)) for part, column in vector.items()}
    return [{part: column[i] for part, column in columns.items()} for i in range(len(responses))]


def _read(cache: Path) -> dict[str, Value]:
    """Whole lines of the cache that hold finite numbers and whose sum is right; others are measured again.

    A killed writer leaves half a line. Lines of earlier versions have no sum and count as they are.
    """
    known: dict[str, Value] = {}
    changed = 0
    if cache.exists():
        for line in cache.read_bytes().split(b"\n"):
            try:
                key, value, *sums = json.loads(line)
                if sums and sums != [_sum(key, value)]:
                    changed += 1
                    continue
                made = {k: float(v) for k, v in value.items()} if isinstance(value, dict) else float(value)
                if all(map(math.isfinite, made.values() if isinstance(made, dict) else [made])):
                    known[key] = made
            except (ValueError, TypeError):
                continue
    if changed:
        log.warning("%s: %d values were changed after they were written and are measured again", cache, changed)
    return known


def _sum(key: str, value: Value) -> str:
    """The first 16 digits of a sha256, behind each value."""
    return hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()[:16]


def _append(cache: Path, new: Mapping[str, Value]) -> None:
    """One write in append mode, so that two processes cannot mix their lines.

    It starts with a line break, so that a torn last line stays alone.
    """
    data = "".join(f"\n{json.dumps([key, value, _sum(key, value)])}" for key, value in new.items()) + "\n"
    file = os.open(cache, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, data.encode())
    finally:
        os.close(file)
