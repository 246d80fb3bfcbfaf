"""How fast a run is: pairs, tokens and needed operations a second, waiting for data, memory."""

import resource
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch

from upo.data.batch import Step
from upo.data.layout import Responses
from upo.runtime.collectives import max_over_ranks, sum_over_ranks
from upo.runtime.flops import Cost, prompt_lengths, rate_of


class Throughput(pl.Callback):
    """Logs `speed/...` for every step, over all ranks; nothing of it depends on anything but the clock.

    pairs_per_s: pairs (for other data: prompts with their responses) a second, the wait for data included.
    response_tokens_per_s: scored tokens a second.
    unique_tokens_per_s: input tokens a second, a prompt counted once for all its responses.
    mfu: needed operations a second as a share of the GPUs' bf16 rate; only for GPUs in `upo.runtime.flops`.
    data_wait: share of the time in which the slowest rank waited for its batch. Steps that follow a validation or a
        checkpoint leave that out.
    peak_memory_gib: of the fullest GPU since the run began; on CPUs of the largest process.
    """

    def __init__(self) -> None:
        self.begun = self.wait = 0.0
        self.ended: float | None = None
        """When the last step ended; None where something else than waiting for data came after it."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        device = pl_module.device
        self.cost = Cost.of(pl_module.policy.model)
        self.rate = rate_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self.ended = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.begun = time.perf_counter()
        self.wait = 0.0 if self.ended is None else self.begun - self.ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # loggers would do so right after, and it would look like waiting
        seconds = time.perf_counter() - self.begun + self.wait
        tokens = sum(unique_tokens(m.responses) for m in batch.micro_batches if not m.dummy)
        operations = needed(batch, self.cost, pl_module.reference is not None) if self.rate else 0
        device = pl_module.device
        longest = torch.tensor([seconds, self.wait / seconds, peak_gib(device)], device=device)
        seconds, wait, peak = max_over_ranks(longest).tolist()
        tokens, operations = sum_over_ranks(torch.tensor([tokens, operations], device=device).float()).tolist()
        values = {
            "response_tokens_per_s": batch.counts["tokens"] / seconds,
            "unique_tokens_per_s": tokens / seconds,
            "data_wait": wait,
            "peak_memory_gib": peak,
        }
        if self.rate:
            values["mfu"] = operations / seconds / (self.rate * trainer.world_size)
        pl_module.log("speed/pairs_per_s", batch.counts["prompts"] / seconds, prog_bar=True, batch_size=1)
        pl_module.log_dict({f"speed/{name}": x for name, x in values.items()}, batch_size=1)
        self.ended = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ended = None

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        self.ended = None


def unique_tokens(responses: Responses) -> int:
    """Input tokens, each prompt once in either layout."""
    return sum(prompt_lengths(responses)) + int((responses.lengths - 1).sum())


def needed(step: Step, cost: Cost, reference: bool) -> int:
    """Operations of this rank's share of a step.

    The scored responses go forward and backward, and forward once more through a live reference; what else a batch
    brings along (KTO's mismatched responses) only forward.
    """
    total = 0
    for batch in (m for m in step.micro_batches if not m.dummy):
        live = int(reference and batch.responses.reference_logps is None)
        total += cost.of_responses(batch.responses) * (3 + live)
        if batch.mismatched is not None:
            total += cost.of_responses(batch.mismatched) * (1 + live)
    return total


def peak_gib(device: torch.device) -> float:
    """Largest memory so far, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
