"""What an evaluation has found, and the files that hold it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from upo.data.example import Example, prompt_key
from upo.data.units import Unit
from upo.evaluation.report import instruction, scores_of, write_report
from upo.runtime.atomic_files import write_json
from upo.runtime.run_folder import RunPaths


@frozen
class Outcome:
    """All figures, and what they are means of."""

    figures: dict[str, float]
    """Flat name to number."""
    asked: Sequence[Example]
    """The held-out prompts."""
    read: Sequence[str]
    """Each prompt as the policy reads it."""
    texts: Mapping[str, list[str]]
    """By system, one response a prompt."""
    values: Mapping[str, list[dict[str, float]]]
    """By system and prompt, what was measured."""
    of_pairs: Mapping[str, list[float]]
    """By name, what was measured on held-out pairs."""
    pairs: Sequence[Unit]
    """The held-out pairs."""
    remarks: list[str]
    """What a reader of the figures has to know, in sentences."""

    def write(self, folder: Path, settings: dict[str, Any], run: Path | None = None) -> None:
        """Writes evaluation.json, samples.jsonl and the report.

        A line of samples.jsonl holds `prompt` (what tells prompts apart), `asked` (the user's words), `model_reads`
        (with the template's and all special tokens), a text by each system's name, and `scores`: by system the
        objective, rewards and the judge's verdicts.

        Args:
            settings: of the evaluation, in plain types.
            run: folder of the run, whose settings and curves the report shows; by default `folder`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        keys = [prompt_key(example.prompt) for example in self.asked]
        content = {
            "settings": settings,
            "metrics": self.figures,
            "remarks": self.remarks,
            "prompts": [{"prompt": k, **{name: v[i] for name, v in self.values.items()}} for i, k in enumerate(keys)],
            "pairs": [
                {"prompt": prompt_key(unit.example.prompt), **{name: x[i] for name, x in self.of_pairs.items()}}
                for i, unit in enumerate(self.pairs)
            ],
        }
        write_json(RunPaths(folder).evaluation, content)
        lines = [
            {"prompt": key, "asked": instruction(example.prompt), "model_reads": self.read[i]}
            | {name: column[i] for name, column in self.texts.items()}
            | {"scores": {name: scores_of(self.values[name][i]) for name in self.texts}}
            for i, (key, example) in enumerate(zip(keys, self.asked, strict=True))
        ]
        RunPaths(folder).samples.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
        found = self.figures, self.asked, self.texts, self.values, self.of_pairs
        write_report(folder, *found, settings, self.remarks, run)
