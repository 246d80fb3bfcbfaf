"""PreferenceData: from sources to optimizer steps."""

from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader

from upo.data.annotate import annotate
from upo.data.codec import TextCodec
from upo.data.example import Example, prompt_key
from upo.data.feeding import Feeding
from upo.data.layout import Layout
from upo.data.preparation import check_rewards, nothing_left, split_of
from upo.data.relabel import relabel
from upo.data.report import DataReport
from upo.data.rewards import Reward, fit_all
from upo.data.rounds import Feed, Round, Split
from upo.data.samplers import StepSampler
from upo.data.source import Source
from upo.data.split import mix, split_by_prompt
from upo.data.steps import StepData
from upo.data.templates import keep_date
from upo.data.tokenize import Limits, Overlong
from upo.data.views import View
from upo.errors import UserError


class PreferenceData(pl.LightningDataModule):
    """Sources -> examples -> auxiliary rewards -> tokens -> optimizer steps of the view that the method has."""

    def __init__(
        self,
        sources: tuple[Source, ...],
        validation: int | float = 0.05,
        rewards: dict[str, Reward] | None = None,
        rewards_cache: str = "~/.cache/upo/rewards",
        tokens_cache: str | None = "~/.cache/upo/tokens",
        relabel: dict[str, float] | None = None,
        max_length: PositiveInt = 1024,
        max_response: PositiveInt | None = None,
        overlong: list[Overlong] = ["drop"],
        max_pairs_per_prompt: PositiveInt = 5,
        pairs_per_step: PositiveInt = 32,
        tokens_per_microbatch: PositiveInt = 8192,
        layout: Layout = "packed",
        sampler: type[StepSampler] = StepSampler,
        feed: Feed | None = None,
        split_seed: int = 0,
        seed: int = 0,
        workers: NonNegativeInt = 0,
    ):
        """
        Args:
            sources: where examples come from; several are mixed by their weights. A later --config or an override
                replaces all of them.
            validation: held-out prompts: a number of prompts (int) or a share of them (float below 1).
                No prompt is ever on both sides.
            rewards: auxiliary rewards by name, measured once for every response before training.
            rewards_cache: folder that keeps measured rewards, by content.
            tokens_cache: folder that keeps the tokens of large data sets, by content; null tokenises at every start.
            relabel: weights by name of a reward in `rewards`: their sum replaces the preferences and labels of training
                and validation data, higher is better, ties are dropped; null keeps them. Evaluation by generation
                still compares with what the data prefers.
            max_length: prompt and response together, in tokens; never beyond the model's context.
            max_response: a response alone, in tokens; null: as `max_length`.
            overlong: what happens to longer ones; a list is tried in order: drop | truncate_prompt_left |
                truncate_response | error. A cut response carries no EOS.
            max_pairs_per_prompt: for ranked lists that are seen as pairs: at most so many, the widest gap first.
            pairs_per_step: pairs (prompts with all their responses) in one GLOBAL optimizer step.
            tokens_per_microbatch: input tokens of one forward pass on one device: lower it when memory runs out, the
                loss stays the same.
            layout: packed stores a prompt once for all its responses; padded is its simple twin.
            sampler: class that orders the training units, e.g. upo.data.curriculum.CurriculumSampler; by default they
                are shuffled.
            feed: makes the training units of each round anew (upo.data.rounds.Feed); null passes through what was read.
            split_seed: of the split, the mixing and KTO's partners: runs of different `seed_everything` share them.
            seed: of the order of steps; set by `seed_everything`.
            workers: processes that prepare batches.
        """
        super().__init__()
        self.sources, self.validation, self.rewards = sources, validation, rewards or {}
        self.rewards_cache, self.relabel = Path(rewards_cache).expanduser(), relabel or {}
        self.tokens_cache = Path(tokens_cache).expanduser() if tokens_cache else None
        self.max_length, self.max_response, self.overlong = max_length, max_response or max_length, overlong
        self.max_pairs_per_prompt = max_pairs_per_prompt
        self.pairs_per_step, self.tokens_per_microbatch = pairs_per_step, tokens_per_microbatch
        self.layout: Layout = layout
        self.sampler, self.feeding = sampler, feed and Feeding(feed)
        self.split_seed, self.seed, self.workers = split_seed, seed, workers
        self.report, self.first_day = DataReport(), date.today().isoformat()  # of the run, which may go on another day

    # ---- examples --------------------------------------------------------------------------------------------

    def examples(self) -> tuple[list[Example], list[Example]]:
        """Training and validation examples as the sources give them, split by prompt; nothing is tokenised."""
        every = [(source, source.examples(self.report)) for source in self.sources]
        known = [example for _, examples in every for example in examples]
        if not known:
            raise UserError("no usable example in any source; the data report says why")
        held_out = {prompt_key(e.prompt) for e in split_by_prompt(known, self.validation, self.split_seed)[1]}
        train = [([e for e in part if prompt_key(e.prompt) not in held_out], source.weight) for source, part in every]
        return mix(train, self.split_seed), [e for e in known if prompt_key(e.prompt) in held_out]

    def prepare(
        self,
        tokenizer: Any,
        view: View,
        rewards: Sequence[str] = (),
        context: int | None = None,
        examples: tuple[list[Example], list[Example]] | None = None,
    ) -> None:
        """Reads, measures and tokenises everything; afterwards the loaders are ready.

        Args:
            view: what the method sees of an example.
            rewards: names of the auxiliary rewards that the method reads.
            context: positions that the model has, in tokens.
            examples: training and validation examples in place of those that the sources give.
        """
        if context is not None and self.max_length > context:
            raise UserError(f"data.max_length={self.max_length} is beyond the model's context of {context} tokens")
        check_rewards(self.rewards, rewards, self.relabel)
        codec = TextCodec(tokenizer, self.tokens_cache)
        self.report, self.made_for = DataReport(), (codec.fingerprint, view, tuple(rewards))
        train, validation = examples or self.examples()
        self.held_out = validation
        if rewards or self.relabel:
            wanted = {name: self.rewards[name] for name in (*rewards, *self.relabel)}
            fit_all(wanted, train, validation, self.rewards_cache)
            train, validation = (annotate(x, wanted, self.rewards_cache) for x in (train, validation))
        if self.relabel:
            train, validation = relabel(train, validation, self.relabel, self.report)
        self.pad_id, self.columns = codec.pad_id, tuple(rewards)
        limits = Limits(self.max_length, self.max_response, self.overlong, codec.bos)
        options = {"rewards": rewards, "max_pairs": self.max_pairs_per_prompt, "seed": self.split_seed}
        self.read = Round(
            split_of(train, view, codec, limits, self.report, side="train", **options),
            split_of(validation, view, codec, limits, self.report, side="validation", **options),
        )
        if not len(self.read.train):
            raise nothing_left(view, self.max_length, self.report)
        self.use(self.read)

    def use(self, round: Round) -> None:
        """Loaders give this round's steps from now on."""
        self.round = round
        self.train, self.val = self._steps(round.train), self._steps(round.val)

    def _steps(self, split: Split) -> StepData:
        options = {"tokens_per_microbatch": self.tokens_per_microbatch, "pad_id": self.pad_id}
        return StepData(split, layout=self.layout, rewards=self.columns, **options)

    # ---- Lightning -------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Reads the data for the Trainer's method; what was made for one that sees the same serves it too."""
        policy = (method := self.trainer.lightning_module).policy
        self.first_day = self.trainer.strategy.broadcast(self.first_day)  # rank 0's: midnight may lie between them
        keep_date(policy.tokenizer, self.first_day)
        wanted = (TextCodec(policy.tokenizer).fingerprint, method.view, tuple(method.rewards))
        if getattr(self, "made_for", None) != wanted:
            self.prepare(policy.tokenizer, method.view, method.rewards, policy.context)
        elif stage == "fit":  # another run begins with what was read
            self.use(self.read)
        if self.feeding is not None:
            if self.trainer.limit_train_batches != 1.0:
                raise UserError("trainer.limit_train_batches would cut the rounds of `data.feed`; remove it")
            self.trainer.reload_dataloaders_every_n_epochs = 1

    def begin(self, method: Any) -> None:
        """The first round as the method prepares it; called when training begins."""
        if self.feeding is None:
            self.use(method.prepare(self.read))

    def loader(self, split: StepData, *, shuffle: bool) -> DataLoader:
        """Steps of one split for this rank."""
        world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        kind = self.sampler if shuffle else StepSampler
        sampler = kind(
            [split.cost(i) for i in range(len(split))],
            units_per_step=self.pairs_per_step, tokens_per_microbatch=self.tokens_per_microbatch,
            shuffle=shuffle, seed=self.seed, rank=world[0], world_size=world[1],
            split=split.split, bucket_by_length=self.layout == "padded",
        )  # fmt: skip
        # An explicit generator: starting an iterator must not draw from the global one, or resumed runs drift.
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(split, sampler=sampler, batch_size=None, num_workers=self.workers, generator=generator)

    def train_dataloader(self) -> DataLoader | list:
        if self.feeding is not None:
            step, method = self.trainer.global_step, self.trainer.lightning_module
            if (round := self.feeding.advance(step, self.read, method, self.pairs_per_step)) is None:
                return []
            self.use(round)
        loader = self.loader(self.train, shuffle=True)
        loader.sampler.start = partial(self._start, len(loader.sampler))
        return loader

    def _start(self, steps: int) -> tuple[int, int]:
        """Epoch and step of it that come next, where an epoch has so many: the optimizer steps taken tell (Lightning's
        count may miss an epoch after a resume at its end, and begins behind a loader with workers)."""
        if self.trainer is None:
            return 0, 0
        if self.feeding is not None:
            return self.feeding.number, self.trainer.global_step - self.feeding.begun[-1]
        return divmod(self.trainer.global_step, self._limited(steps))

    def _limited(self, steps: int) -> int:
        limit = self.trainer.limit_train_batches  # type: ignore[union-attr]
        return int(steps * limit) if isinstance(limit, float) else min(steps, limit)

    def steps_of_epoch(self) -> int | None:
        """Optimizer steps of an epoch; None where a feed decides round by round."""
        return self._limited(len(self.loader(self.train, shuffle=True).sampler)) if self.feeding is None else None  # type: ignore[arg-type]

    def epochs_before(self, step: int, steps: int) -> int:
        """Epochs that had ended when the present one began, with this optimizer step and with so many steps."""
        return step // steps if self.feeding is None else self.feeding.number

    def val_dataloader(self) -> DataLoader | list:
        return self.loader(self.val, shuffle=False) if len(self.val) else []

    def state_dict(self) -> dict[str, Any]:
        learned = {name: state for name, reward in self.rewards.items() if (state := reward.state())}
        feeding = {} if self.feeding is None else {"feeding": self.feeding.state_dict()}
        return {"seed": self.seed, "rewards": learned} | feeding

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["seed"] != self.seed:
            raise UserError(f"this run was trained with data.seed={state['seed']}; a resume needs the same")
        for name, learned in state.get("rewards", {}).items():
            if name not in self.rewards or self.rewards[name].state() != learned:
                raise UserError(
                    f"`data.rewards.{name}` is no longer what this run began with: its scale on the training split was "
                    "another; resume with the same data and rewards, or start anew with --overwrite"
                )
        if (self.feeding is not None) != ("feeding" in state):
            raise UserError("a run goes on with the `data.feed` that it began with; set it back, or start anew")
        if self.feeding is not None:
            self.feeding.load_state_dict(state["feeding"])
