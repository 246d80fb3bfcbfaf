"""The files that an evaluation leaves to programs: evaluation.json and samples.jsonl."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upo.data.example import Example, prompt_key
from upo.data.units import Unit
from upo.evaluation.report import instruction, scores_of
from upo.runtime.atomic_files import write_json
from upo.runtime.run_folder import RunPaths


def write_results(
    folder: Path,
    settings: Mapping[str, Any],
    figures: Mapping[str, float],
    asked: Sequence[Example],
    read: Sequence[str],
    texts: Mapping[str, Sequence[str]],
    values: Mapping[str, Sequence[Mapping[str, float]]],
    of_pairs: Mapping[str, Sequence[float]],
    pairs: Sequence[Unit],
) -> None:
    """All figures, also by prompt and by pair; and a line a prompt with texts and scores.

    A line of samples.jsonl holds `prompt` (what tells prompts apart), `asked` (the user's words), `model_reads` (with
    the template's and all special tokens), a text by each system's name, and `scores`: by system the objective,
    rewards and the judge's verdicts.

    Args:
        read: each prompt as the policy reads it.
        texts: by system, one response a prompt.
        values: by system and prompt, what was measured.
        of_pairs: by name, what was measured on held-out pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = [prompt_key(example.prompt) for example in asked]
    content = {
        "settings": settings,
        "metrics": figures,
        "prompts": [{"prompt": k, **{name: v[i] for name, v in values.items()}} for i, k in enumerate(keys)],
        "pairs": [
            {"prompt": prompt_key(unit.example.prompt), **{name: x[i] for name, x in of_pairs.items()}}
            for i, unit in enumerate(pairs)
        ],
    }
    write_json(RunPaths(folder).evaluation, content)
    lines = [
        {"prompt": key, "asked": instruction(example.prompt), "model_reads": read[i]}
        | {name: column[i] for name, column in texts.items()}
        | {"scores": {name: scores_of(values[name][i]) for name in texts}}
        for i, (key, example) in enumerate(zip(keys, asked, strict=True))
    ]
    RunPaths(folder).samples.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
