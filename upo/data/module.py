"""PreferenceData: from sources to optimizer steps."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from attrs import evolve
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch.utils.data import DataLoader

from upo.data.batch import Batch
from upo.data.example import Example, prompt_key
from upo.data.layout import Layout, Tokens
from upo.data.relabel import relabel
from upo.data.report import DataReport
from upo.data.rewards import Reward, fit_all
from upo.data.samplers import StepSampler
from upo.data.source import Source
from upo.data.split import mix, split_by_prompt
from upo.data.steps import StepData
from upo.data.tokenize import Encoder, Overlong, fit
from upo.errors import UserError


class PreferenceData(pl.LightningDataModule):
    """Sources -> examples -> auxiliary rewards -> tokens -> optimizer steps of the batch type that the method eats."""

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
        self.sampler = sampler
        self.split_seed, self.seed, self.workers = split_seed, seed, workers
        self.report = DataReport()

    # ---- examples --------------------------------------------------------------------------------------------

    def examples(self) -> tuple[list[Example], list[Example]]:
        """Training and validation examples as the sources give them, split by prompt; nothing is tokenised."""
        train: list[tuple[list[Example], float]] = []
        every = [(source, source.examples(self.report)) for source in self.sources]
        known = [example for _, examples in every for example in examples]
        if not known:
            raise UserError("no usable example in any source; the data report says why")
        held_out = {prompt_key(e.prompt) for e in split_by_prompt(known, self.validation, self.split_seed)[1]}
        for source, examples in every:
            train.append(([e for e in examples if prompt_key(e.prompt) not in held_out], source.weight))
        return mix(train, self.split_seed), [e for e in known if prompt_key(e.prompt) in held_out]

    def prepare(
        self, tokenizer: Any, batch_type: type[Batch], rewards: Sequence[str] = (), context: int | None = None
    ) -> None:
        """Reads, measures and tokenises everything; afterwards the loaders are ready.

        Args:
            rewards: names of the auxiliary rewards that the method reads.
            context: positions that the model has, in tokens.
        """
        if context is not None and self.max_length > context:
            raise UserError(f"data.max_length={self.max_length} is beyond the model's context of {context} tokens")
        if missing := [name for name in rewards if name not in self.rewards]:
            raise UserError(
                f"the method reads the rewards {list(rewards)}, but `data.rewards` lacks {missing}; "
                "name a reward class there or change `model.reward_weights`"
            )
        if missing := [name for name in self.relabel if name not in self.rewards]:
            raise UserError(f"`data.relabel` weighs {missing}, which `data.rewards` lacks: {list(self.rewards)}")
        train, validation = self.examples()
        self.held_out = validation
        if rewards or self.relabel:
            from upo.data.annotate import annotate

            wanted = {name: self.rewards[name] for name in (*rewards, *self.relabel)}
            fit_all(wanted, train, validation, self.rewards_cache)
            train, validation = (annotate(x, wanted, self.rewards_cache) for x in (train, validation))
        if self.relabel:
            train, validation = relabel(train, validation, self.relabel, self.report)
        encoder = Encoder(tokenizer, self.tokens_cache)
        self.train = self._split("train", train, encoder, batch_type, rewards)
        self.val = self._split("validation", validation, encoder, batch_type, rewards)
        if not len(self.train):
            dropped = {name: part["dropped"] for name, part in self.report.to_dict().items()}
            raise UserError(
                f"nothing to train on: the method wants a {batch_type.wants} that fits into "
                f"max_length={self.max_length}; what was dropped: {json.dumps(dropped)}"
            )

    def _split(
        self, name: str, examples: list[Example], encoder: Encoder, batch_type: type[Batch], rewards: Sequence[str]
    ) -> StepData:
        views = []
        for example in examples:
            mine = batch_type.views(example, self.max_pairs_per_prompt)
            if not mine:
                self.report.drop(example.source, f"no {batch_type.wants}")
            views += mine
        units = []
        for tokens in encoder.encode(views, self.report):
            unit = self._fit(tokens, encoder, self.overlong)
            if unit is not None and (prompts := encoder.prompts(batch_type.contexts(unit.example))):
                under = [Tokens(prompt, unit.responses, unit.example) for prompt in prompts]
                cut = [how for how in self.overlong if how != "truncate_response"]  # they are the same everywhere
                contexts = [x for u in under if (x := self._fit(u, encoder, cut)) is not None]
                unit = evolve(unit, contexts=tuple(contexts)) if len(contexts) == len(under) else None
            if unit is not None and (others := batch_type.companions(unit.example)):
                made = [self._fit(x, encoder, self.overlong) for x in encoder.encode(others, self.report)]
                found = tuple(x for x in made if x is not None)
                unit = evolve(unit, contexts=found) if len(found) == len(others) else None
            if unit is not None and batch_type.contradicts(unit):
                self.report.drop(tokens.example.source, "equal tokens, different preference")
            elif unit is not None:
                units.append(unit)
                self.report.keep(tokens.example.source, kind=f"{name} {batch_type.unit}")
        tokenizer = encoder.tokenizer
        return StepData(
            units,
            batch_type,
            layout=self.layout,
            tokens_per_microbatch=self.tokens_per_microbatch,
            max_length=self.max_length,
            pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            rewards=rewards,
            seed=self.split_seed,
        )

    def _fit(self, tokens: Tokens, encoder: Encoder, overlong: Sequence[Overlong]) -> Tokens | None:
        limits = {"max_length": self.max_length, "max_response": self.max_response}
        return fit(tokens, **limits, overlong=overlong, bos=encoder.bos, report=self.report)

    # ---- Lightning -------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train"):
            if stage == "fit":  # another run, which drops its own
                for split in (self.train, self.val):
                    split.units, split.rewards = split.as_read
            return
        method = self.trainer.lightning_module
        self.prepare(method.policy.tokenizer, method.batch_type, method.rewards, method.policy.context)

    def loader(self, split: StepData, *, shuffle: bool) -> DataLoader:
        """Steps of one split for this rank."""
        world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        kind = self.sampler if shuffle else StepSampler
        sampler = kind(
            [split.cost(i) for i in range(len(split))],
            units_per_step=self.pairs_per_step,
            tokens_per_microbatch=self.tokens_per_microbatch,
            shuffle=shuffle,
            seed=self.seed,
            rank=world[0],
            world_size=world[1],
            units=split.units,
            alike=self.layout == "padded",
        )
        # An explicit generator: starting an iterator must not draw from the global one, or resumed runs drift.
        return DataLoader(
            split,
            sampler=sampler,
            batch_size=None,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def train_dataloader(self) -> DataLoader:
        loader = self.loader(self.train, shuffle=True)
        loader.sampler.start = partial(self._start, len(loader.sampler))
        return loader

    def _start(self, steps: int) -> tuple[int, int]:
        """Epoch and step of it that come next, where an epoch has so many: the steps taken tell.

        Lightning's own count may miss an epoch after a resume at its end, and begins behind a loader with workers.
        """
        if self.trainer is None:
            return 0, 0
        limit = self.trainer.limit_train_batches
        return divmod(self.trainer.global_step, int(steps * limit) if isinstance(limit, float) else min(steps, limit))

    def val_dataloader(self) -> DataLoader | list:
        return self.loader(self.val, shuffle=False) if len(self.val) else []

    def state_dict(self) -> dict[str, Any]:
        learned = {name: state for name, reward in self.rewards.items() if (state := reward.state())}
        return {"seed": self.seed, "rewards": learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["seed"] != self.seed:
            raise UserError(f"this run was trained with data.seed={state['seed']}; a resume needs the same")
        for name, learned in state.get("rewards", {}).items():
            if name not in self.rewards or self.rewards[name].state() != learned:
                raise UserError(
                    f"`data.rewards.{name}` is no longer what this run began with: its scale on the training split was "
                    "another; resume with the same data and rewards, or start anew with --overwrite"
                )
