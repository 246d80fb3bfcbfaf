"""What the policy writes, measured at each validation: a metric that `checkpoint.monitor` can choose the best by."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from lightning.pytorch.strategies import FSDPStrategy

from upo.data.rewards import Reward
from upo.data.tokenize import Encoder
from upo.errors import UserError
from upo.runtime.collectives import ALONE, Ranks

if TYPE_CHECKING:
    from upo.data.module import PreferenceData

HEALTH = ("tokens", "words", "repetition", "ended")


class GenerationMetrics(pl.Callback):
    """Logs means over responses to held-out prompts, as `val/generated/...`: `rewards/NAME` for each of `data.rewards`,
    `objective` (by the method's reward_weights), `win_rate_vs_chosen` (by `judge`), `tokens`, `words`, `repetition` and
    `ended`.

    The same prompts and the same random numbers each time, so that steps differ by their weights alone. Ranks share the
    responses; of a model in shards each one holds the whole for as long as it writes.
    """

    def __init__(
        self,
        prompts: PositiveInt = 64,
        judge: Reward | None = None,
        max_new_tokens: PositiveInt = 128,
        temperature: NonNegativeFloat = 1.0,
        top_p: NonNegativeFloat = 0.95,
        batch_size: PositiveInt = 128,
        seed: int = 0,
    ):
        """
        Args:
            prompts: number of held-out prompts, all different; fewer if the data holds out fewer.
            judge: reward whose higher value wins against the chosen response; a tie counts as half a win.
            max_new_tokens: largest number of tokens of a response, EOS included.
            temperature: of sampling; 0 always takes the most probable token.
            top_p: nucleus sampling, in (0, 1].
            batch_size: number of responses sampled at a time; changes speed and memory only.
            seed: of the sampling and of the choice of prompts.
        """
        self.prompts, self.judge, self.seed = prompts, judge, seed
        self.sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        self.sampling |= {"batch_size": batch_size}

    def names(self, rewards: Mapping[str, Reward], weights: Mapping[str, float] | None) -> list[str]:
        """What is logged with these `data.rewards` and the method's reward_weights; a win rate needs pairs too."""
        found = [f"rewards/{name}" for name in rewards] + ["objective"] * bool(weights) + list(HEALTH)
        return [f"val/generated/{name}" for name in found + ["win_rate_vs_chosen"] * (self.judge is not None)]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            raise UserError("GenerationMetrics does not work with FSDPStrategy; take upo.parallel.strategy.Sharded")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            ranks = Ranks(trainer.global_rank, trainer.world_size)
            values = self.measure(pl_module, trainer.datamodule, ranks)  # type: ignore[attr-defined]
            pl_module.log_dict({f"val/generated/{name}": x for name, x in values.items()}, batch_size=1)

    def measure(self, method: Any, data: "PreferenceData", ranks: Ranks = ALONE) -> dict[str, float]:
        """Means over the responses that the method's policy writes now.

        Args:
            ranks: the ranks that share the sampling.
        """
        from upo.evaluation import measure
        from upo.evaluation.systems import chosen_texts, of_samples
        from upo.evaluation.win_rates import by_reward
        from upo.rollout.sampling import sample_policy

        rewards = data.rewards | ({} if self.judge is None else {"judge": self.judge})
        asked = measure.distinct_prompts(measure.held_out_examples(data), self.prompts, self.seed)
        tokenizer, prompts = method.policy.tokenizer, [example.prompt for example in asked]
        written = sample_policy(method.policy, prompts, ranks=ranks, **self.sampling)
        systems = {"policy": of_samples([group[0] for group in written])}
        if self.judge is not None and (chosen := chosen_texts(asked, Encoder(tokenizer))) is not None:
            systems["chosen"] = chosen
        measure.fit_rewards(rewards, data)
        values = measure.measured(asked, systems, rewards)
        measure.objective(values, getattr(method, "reward_weights", None) or {})
        if "chosen" in systems:
            by_reward(values)
        columns = {name: [row[name] for row in values["policy"]] for name in values["policy"][0]}
        return {
            name: sum(column) / len(column)
            for name, column in columns.items()
            if name != "rewards/judge" and not name.startswith("ties_")
        }
