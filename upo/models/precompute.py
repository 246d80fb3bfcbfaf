"""Fills a store with the reference log-probs of a data set, and checks a sample of those already stored."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from tqdm import tqdm

from upo.data.rounds import Round
from upo.data.units import Group
from upo.errors import UserError
from upo.models.policy import Policy
from upo.models.scoring import score_in_parts
from upo.models.store import LogpsStore
from upo.runtime.collectives import ALONE, Ranks, max_over_ranks

if TYPE_CHECKING:
    from upo.data.module import PreferenceData

SECONDS = 30.0
"""Seconds between two writes: at most these are lost when a run is killed."""

SAMPLE = 8
"""Number of stored responses that are computed again, as a check, when a run starts."""


class Precompute:
    """Gets all log-probs that one run needs: reads stored ones, checks a sample of them, computes the rest."""

    def __init__(self, model: Policy, store: LogpsStore, trainer: pl.Trainer, round: Round):
        self.model, self.store = model, store
        self.trainer = trainer
        self.device, data = trainer.strategy.root_device, trainer.datamodule  # type: ignore[attr-defined]
        self.data: PreferenceData = data
        self.groups: list[Group] = [
            group
            for split in (round.train, round.val)
            for group in sorted(split.groups(), key=lambda group: group.role == "mismatched")
        ]
        self.wanted: dict[bytes, tuple[int, int]] = {}
        """By key: index of the group and of the response in it."""
        for group_index, group in enumerate(self.groups):
            for index, response in enumerate(group.responses):
                self.wanted.setdefault(store.key(group.prompt, response), (group_index, index))

    def values(self, tolerance: tuple[float, float]) -> dict[bytes, float]:
        """Every log-prob that this run needs, by key.

        Args:
            tolerance: relative and absolute (nats) difference that the check of stored values allows.
        """
        logps = self._stored()
        self.check(logps, *tolerance)
        missing: set[bytes] = set()
        if len(logps) < len(self.wanted):
            with self.store.locked(self._any_rank, self.trainer.is_global_zero):
                missing = self.wanted.keys() - self._stored().keys()
                self.fill(missing)
                self._any_rank(True)  # all ranks have written
            logps = self.store.read(self.wanted)
            if lost := len(self.wanted) - len(logps):
                raise UserError(
                    f"{lost} reference log-probs that other ranks computed are not in {self.store.folder}; "
                    "set model.reference.init_args.folder to one that all machines share"
                )
        if self.trainer.is_global_zero:
            print(
                f"reference log-probs: {len(logps) - len(missing)} read, {len(missing)} computed ({self.store.folder})"
            )
        return logps

    def _stored(self) -> dict[bytes, float]:
        """The stored log-probs as read by rank 0: ranks with different ones would wait for each other for ever."""
        logps = self.store.read(self.wanted) if self.trainer.is_global_zero else None
        return self.trainer.strategy.broadcast(logps)  # type: ignore[return-value]

    def check(self, known: Mapping[bytes, float], relative: float, absolute: float) -> None:
        """Computes a sample of stored log-probs again and refuses the store where one differs by more than allowed.

        All ranks take the same sample, so that all of them refuse.

        Args:
            known: stored log-probs by key.
        """
        candidates = [key for key in self.wanted if key in known]
        sample = random.Random(self.data.seed).sample(candidates, min(SAMPLE, len(candidates)))
        for keys, logps in self.batches(sample, ALONE):
            for key, live in zip(keys, logps, strict=True):
                if not abs(live - known[key]) <= absolute + relative * abs(live):
                    raise self.store.unfit(f"a log-prob of {known[key]:.6g} should be {live:.6g}")

    def fill(self, missing: set[bytes]) -> None:
        """Computes and writes this rank's share of the missing log-probs."""
        ranks = Ranks(self.trainer.global_rank, self.trainer.world_size)
        new: dict[bytes, float] = {}
        last_write = time.monotonic()
        disable = None if self.trainer.is_global_zero else True  # None: no bar where the output is not a terminal
        with tqdm(total=len(missing), desc="reference log-probs", unit="response", disable=disable) as bar:
            try:
                for keys, logps in self.batches([k for k in self.wanted if k in missing], ranks):
                    new |= zip(keys, logps, strict=True)
                    bar.update(len(keys) * ranks.size)
                    if time.monotonic() - last_write >= SECONDS:
                        self.store.write(new)
                        new, last_write = {}, time.monotonic()
            finally:
                self.store.write(new)

    def batches(self, keys: Sequence[bytes], ranks: Ranks) -> Iterator[tuple[list[bytes], list[float]]]:
        """Keys with their log-probs, one item per forward pass; responses of similar length go together.

        All ranks run equally many passes; those that only keep a rank in step give no item.
        """
        shares = [list(share) for _, share in groupby(keys, lambda key: self.wanted[key][0])]
        groups, data = [self._group(share) for share in shares], self.data
        for part in score_in_parts(
            self.model,
            groups,
            layout=data.layout,
            max_tokens=data.tokens_per_microbatch,
            device=self.device,
            ranks=ranks,
            bucket_by_length=True,
            workers=data.workers,
        ):
            logps = part.values["logps"]
            if not logps.isfinite().all():
                raise UserError("the reference gives a response a log-prob that is not finite; try another dtype")
            if part.counts:
                yield [key for i in part.groups for key in shares[i]], logps.double().tolist()

    def _group(self, keys: Sequence[bytes]) -> Group:
        """The group of these keys, which are all of one group, with only their responses."""
        group = self.groups[self.wanted[keys[0]][0]]
        return Group(group.prompt, tuple(group.responses[self.wanted[key][1]] for key in keys))

    def _any_rank(self, mine: bool) -> bool:
        return bool(max_over_ranks(torch.tensor(float(mine), device=self.device)))
