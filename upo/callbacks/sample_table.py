"""What the policy writes while it is trained: a table of samples every so many steps."""

import json
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from lightning.pytorch.strategies import FSDPStrategy

from upo.callbacks.loggers import log_table
from upo.data.example import as_text
from upo.errors import UserError
from upo.runtime.atomic_files import write_text
from upo.runtime.collectives import ALONE, Ranks
from upo.runtime.run_folder import RunPaths

if TYPE_CHECKING:
    from upo.data.module import PreferenceData


class SampleTable(pl.Callback):
    """Writes responses to held-out prompts, with `data.rewards` of each, to training_samples.jsonl in the run folder
    and to loggers that show tables (W&B, TensorBoard).

    The same prompts and the same random numbers each time. No random number of the training is drawn; a resumed run
    drops the lines behind its checkpoint and writes them again. Rank 0 alone samples; models in shards are refused.
    """

    def __init__(
        self,
        every_n_steps: PositiveInt = 100,
        prompts: PositiveInt = 8,
        max_new_tokens: PositiveInt = 128,
        temperature: NonNegativeFloat = 1.0,
        top_p: NonNegativeFloat = 0.95,
        seed: int = 0,
    ):
        """
        Args:
            every_n_steps: optimizer steps between two tables.
            prompts: number of held-out prompts, all different; fewer if the data holds out fewer.
            max_new_tokens: largest number of tokens of a response, EOS included.
            temperature: of sampling; 0 always takes the most probable token.
            top_p: nucleus sampling, in (0, 1].
            seed: of the sampling and of the choice of prompts.
        """
        self.every_n_steps, self.prompts, self.seed = every_n_steps, prompts, seed
        self.sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            raise UserError("SampleTable does not work with FSDPStrategy; take upo.parallel.strategy.Sharded")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        file = RunPaths(trainer.default_root_dir).training_samples
        if trainer.is_global_zero and file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= trainer.global_step]
            write_text(file, "".join(f"{line}\n" for line in kept))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps:
            return
        ranks = Ranks(trainer.global_rank, trainer.world_size)
        rows = self.rows(pl_module, trainer.datamodule, ranks)  # type: ignore[attr-defined]
        if ranks.rank:
            return
        file = RunPaths(trainer.default_root_dir).training_samples
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        lines = (json.dumps({"step": step} | row, ensure_ascii=False) + "\n" for row in rows)
        write_text(file, before + "".join(lines))  # whole, whenever it is killed
        for logger in trainer.loggers:
            log_table(logger, "train/samples", rows, step - 1)  # where the metrics of this step stand

    def rows(self, method: Any, data: "PreferenceData", ranks: Ranks = ALONE) -> list[dict[str, Any]]:
        """Prompt, response and rewards, as the policy writes now; none on further `ranks`, which sample too."""
        from upo.evaluation import measure
        from upo.evaluation.systems import of_samples
        from upo.rollout.sampling import sample_policy

        asked = measure.distinct_prompts(measure.held_out_examples(data), self.prompts, self.seed)
        prompts = [example.prompt for example in asked]
        written = sample_policy(method.policy, prompts, ranks=ranks, **self.sampling)
        if ranks.rank:
            return []
        texts = of_samples([group[0] for group in written])
        measure.fit_rewards(data.rewards, data)
        values = measure.measured(asked, {"policy": texts}, data.rewards)
        measure.objective(values, getattr(method, "reward_weights", None) or {})
        return [
            {"prompt": as_text(example.prompt), "response": text} | own
            for example, text, own in zip(asked, texts.texts, values["policy"], strict=True)
        ]
