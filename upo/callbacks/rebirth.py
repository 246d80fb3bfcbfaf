"""Rebirth tuning (Tang et al., 2024), https://arxiv.org/abs/2410.06682: what preference training teaches, told anew.

After the last round of training (`Rounds`, or any method's), the model answers the training prompts, and the model from
BEFORE preference training is fine-tuned on these answers: it gets what was learned without the wear of many rounds.

    trainer.callbacks: [{class_path: upo.callbacks.rebirth.RebirthTargets}]        in the preference run
    after: [that run's YAML], method SFT from the first model on `{name: trl, path: runs/NAME/rebirth.jsonl}`

The second run is a stage like any other, see experiments/tldr/tldr_stories260k_rebirth.yaml. From knowledge: that there
is such a step and what it is for. Ours: one sampled answer to each prompt, and the settings of the sampling.
"""

import json
from typing import Any

import lightning.pytorch as pl
from jsonargparse.typing import NonNegativeFloat, PositiveInt

from upo.callbacks.run_end import RunCallback, TrainedRun
from upo.data.example import Prompt, prompt_key
from upo.errors import UserError
from upo.parallel.sharding import is_sharded
from upo.runtime.atomic_files import write_text

FILE = "rebirth.jsonl"
"""In the run folder: the targets, in TRL's format of prompts with labelled completions."""


class RebirthTargets(RunCallback):
    """Writes the trained policy's answers to the training prompts into the run folder, as targets for SFT."""

    def __init__(
        self,
        prompts: PositiveInt | None = None,
        max_new_tokens: PositiveInt = 256,
        temperature: NonNegativeFloat = 1.0,
        top_p: NonNegativeFloat = 0.95,
    ):
        """
        Args:
            prompts: how many, the first ones of the training data; null: all.
            max_new_tokens: limit of an answer, with the token that ends it. Take the same `data.max_response` and
                `overlong: truncate_response` in the run that learns them, so that a cut answer is not closed by EOS.
            temperature: 0 takes the likeliest token.
            top_p: nucleus, in (0, 1].
        """
        self.prompts = prompts
        self.settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if is_sharded(trainer.strategy):
            raise UserError(
                "RebirthTargets cannot sample from a sharded policy; use `python -m upo.generate` afterwards"
            )

    def on_run_end(self, run: TrainedRun) -> None:
        """Samples and writes."""
        from upo.rollout.ends import warn_unended
        from upo.rollout.sampling import sample

        policy, units = run.method.policy, run.data.train.units
        asked: list[Prompt] = list({prompt_key(u.example.prompt): u.example.prompt for u in units}.values())
        asked = asked[: self.prompts]
        with policy.active():
            written = sample(policy.model, policy.tokenizer, asked, **self.settings, progress="rebirth targets")
        warn_unended("the policy", [s for group in written for s in group], self.settings["max_new_tokens"])
        rows = [target(prompt, answer.text) for prompt, (answer,) in zip(asked, written, strict=True) if answer.text]
        file = run.folder / FILE
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{file}: {len(rows)} targets for rebirth tuning")


def target(prompt: Prompt, text: str) -> dict[str, Any]:
    """A prompt with a desirable completion: texts, or messages where the prompt is a conversation."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": text, "label": True}
    return {"prompt": list(prompt), "completion": [{"role": "assistant", "content": text}], "label": True}
