"""How much a run has trained on, by which runs of other batch sizes and lengths are compared."""

from typing import Any

import lightning.pytorch as pl
import torch

from upo.callbacks.throughput import unique_tokens
from upo.data.batch import Step
from upo.runtime.collectives import sum_over_ranks


class Seen(pl.Callback):
    """Logs `seen/...` for every step: sums since step 0 over all ranks, also across resumes.

    pairs: pairs (for other data: prompts with their responses); a pair of a later epoch counts again.
    tokens: input tokens, a prompt counted once for all its responses.
    """

    def __init__(self) -> None:
        self.pairs = self.tokens = 0
        self._restored = False

    def state_dict(self) -> dict[str, Any]:
        return {"pairs": self.pairs, "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not isinstance(state_dict, dict) or not {"pairs", "tokens"} <= state_dict.keys():
            raise ValueError("no sums of pairs and tokens")
        self.pairs, self.tokens = int(state_dict["pairs"]), int(state_dict["tokens"])
        self._restored = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.known = self._restored or trainer.global_step == 0
        """False behind a checkpoint that holds no sums: those from there on would look like a whole run's."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        tokens = sum(unique_tokens(m.responses) for m in batch.micro_batches if not m.dummy)
        self.tokens += int(sum_over_ranks(torch.tensor(tokens, device=pl_module.device)))
        self.pairs += round(batch.counts["prompts"])
        if self.known:
            sums = {"seen/pairs": float(self.pairs), "seen/tokens": float(self.tokens)}
            pl_module.log_dict(sums, batch_size=1)
